// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

interface ITransferFrom {
    function transferFrom(address from, address to, uint256 value) external returns (bool);
}

/// Pays in all the ways that no top-level transaction shows: what contract wallets and exchange batches do.
contract Forwarder {
    error LengthsDiffer();
    error PaymentFailed(address to);
    error RevertedOnPurpose();

    /// Forwards the ether sent with the call: the payee appears only in the trace.
    function pay(address payable to) external payable {
        _send(to, msg.value);
    }

    /// Pays ether to each recipient in turn; the same recipient may appear more than once.
    function batchEther(address payable[] calldata to, uint256[] calldata values) external payable {
        if (to.length != values.length) revert LengthsDiffer();
        for (uint256 i = 0; i < to.length; i++) _send(to[i], values[i]);
    }

    /// Moves the caller's tokens (approved to this contract) to each recipient in turn: several logs, one transaction.
    function batchToken(address token, address[] calldata to, uint256[] calldata values) external {
        if (to.length != values.length) revert LengthsDiffer();
        for (uint256 i = 0; i < to.length; i++) _move(token, to[i], values[i]);
    }

    /// Pays ether and the caller's tokens, then reverts: mined with status 0, and nobody was paid.
    function payAndRevert(address token, address to, uint256 value) external payable {
        if (msg.value > 0) _send(payable(to), msg.value);
        if (token != address(0)) _move(token, to, value);
        revert RevertedOnPurpose();
    }

    /// Pays by a contract that is created and destroyed within this transaction: no call to the payee, not even inside.
    function payBySelfdestruct(address payable to) external payable {
        new SelfdestructPayer{value: msg.value}(to);
    }

    function _send(address payable to, uint256 value) private {
        (bool ok,) = to.call{value: value}("");
        if (!ok) revert PaymentFailed(to);
    }

    function _move(address token, address to, uint256 value) private {
        if (!ITransferFrom(token).transferFrom(msg.sender, to, value)) revert PaymentFailed(to);
    }
}

/// Sends what it was created with and is gone; EIP-6780 still deletes a contract made in the same transaction.
contract SelfdestructPayer {
    constructor(address payable to) payable {
        selfdestruct(to);
    }
}
