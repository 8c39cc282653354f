// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

import {Delegate} from "./Delegate.sol";

/// Sweeps many deposit addresses in one transaction of the sponsor. It holds nothing, and is trusted with nothing but the
/// moment: where the money goes stands in the delegate's code.
contract Collector {
    address public immutable SPONSOR;

    error NotSponsor();
    error NotEnoughGas();

    constructor(address sponsor) {
        SPONSOR = sponsor;
    }

    /// Tells each address to sweep `token`, with at most `gasEach` gas. One that fails does not keep the others from it.
    function collect(address token, address[] calldata addresses, uint256 gasEach) external {
        if (msg.sender != SPONSOR) revert NotSponsor();
        bytes memory data = abi.encodeCall(Delegate.sweep, (token));
        // A call gets 63/64 of what is left at most (EIP-150). Without this an item could fail for our own thrift, and
        // gas estimates, which look for the smallest limit that does not revert, would end there.
        uint256 needed = gasEach + gasEach / 32 + 10_000;
        for (uint256 i = 0; i < addresses.length; i++) {
            if (gasleft() < needed) revert NotEnoughGas();
            address account = addresses[i];
            assembly ("memory-safe") {
                // Neither the outcome nor the answer is read: what was moved stands in the token's logs.
                pop(call(gasEach, account, 0, add(data, 0x20), mload(data), 0, 0))
            }
        }
    }
}
