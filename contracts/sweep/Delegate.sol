// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

interface IToken {
    function balanceOf(address account) external view returns (uint256);
    function transfer(address to, uint256 value) external returns (bool);
}

/// What deposit addresses delegate to (EIP-7702). It keeps no storage, makes no delegate call and cannot be changed: all
/// that it does is to move the whole balance of a token to the treasury, when the collector says so.
contract Delegate {
    address public immutable TREASURY;
    address public immutable COLLECTOR;

    error NotCollector();
    error TransferFailed();

    constructor(address treasury, address collector) {
        TREASURY = treasury;
        COLLECTOR = collector;
    }

    /// An address with code needs this to take plain ether; it is empty, so a sender's 2,300 gas do.
    receive() external payable {}

    /// Moves all of this address's `token` to the treasury; nothing when it has none.
    function sweep(address token) external {
        if (msg.sender != COLLECTOR) revert NotCollector();
        uint256 value = IToken(token).balanceOf(address(this));
        if (value == 0) return;
        (bool ok, bytes memory answer) = token.call(abi.encodeCall(IToken.transfer, (TREASURY, value)));
        // Tokens such as USDT return nothing; some return false where they should revert.
        if (!ok || (answer.length > 0 && !abi.decode(answer, (bool)))) revert TransferFailed();
    }
}
