// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

/// What real tokens do that the standard does not say. Each contract below has one oddity and is otherwise plain.
abstract contract OddToken {
    string public name;
    string public symbol;
    uint8 public immutable decimals;
    uint256 public totalSupply;
    mapping(address account => uint256 units) public balanceOf;
    mapping(address owner => mapping(address spender => uint256 units)) public allowance;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);

    constructor(string memory name_, string memory symbol_, uint8 decimals_) {
        name = name_;
        symbol = symbol_;
        decimals = decimals_;
    }

    function mint(address to, uint256 value) external {
        totalSupply += value;
        balanceOf[to] += value;
        emit Transfer(address(0), to, value);
    }

    function _approve(address spender, uint256 value) internal {
        allowance[msg.sender][spender] = value;
        emit Approval(msg.sender, spender, value);
    }

    function _spend(address from, uint256 value) internal {
        require(allowance[from][msg.sender] >= value, "allowance");
        allowance[from][msg.sender] -= value;
    }

    function _move(address from, address to, uint256 value) internal {
        require(balanceOf[from] >= value, "balance");
        balanceOf[from] -= value;
        balanceOf[to] += value;
        emit Transfer(from, to, value);
    }
}

/// Returns nothing where the standard returns a bool, as USDT on Ethereum does: callers that decode a bool revert.
contract NoReturnToken is OddToken {
    constructor(string memory name_, string memory symbol_, uint8 decimals_) OddToken(name_, symbol_, decimals_) {}

    function approve(address spender, uint256 value) external {
        _approve(spender, value);
    }

    function transfer(address to, uint256 value) external {
        _move(msg.sender, to, value);
    }

    function transferFrom(address from, address to, uint256 value) external {
        _spend(from, value);
        _move(from, to, value);
    }
}

/// Keeps 1% of every transfer, rounded down: what arrives is less than what the call data says.
contract FeeToken is OddToken {
    address public immutable feeCollector = msg.sender;

    constructor(string memory name_, string memory symbol_, uint8 decimals_) OddToken(name_, symbol_, decimals_) {}

    function approve(address spender, uint256 value) external returns (bool) {
        _approve(spender, value);
        return true;
    }

    function transfer(address to, uint256 value) external returns (bool) {
        _moveLessFee(msg.sender, to, value);
        return true;
    }

    function transferFrom(address from, address to, uint256 value) external returns (bool) {
        _spend(from, value);
        _moveLessFee(from, to, value);
        return true;
    }

    function _moveLessFee(address from, address to, uint256 value) private {
        uint256 fee = value / 100;
        _move(from, to, value - fee);
        if (fee > 0) _move(from, feeCollector, fee);
    }
}

/// Refuses transfers from and to blacklisted accounts, as USDC does: one bad deposit must not stop a whole sweep.
contract BlacklistToken is OddToken {
    mapping(address account => bool) public isBlacklisted;

    constructor(string memory name_, string memory symbol_, uint8 decimals_) OddToken(name_, symbol_, decimals_) {}

    function setBlacklisted(address account, bool blacklisted) external {
        isBlacklisted[account] = blacklisted;
    }

    function approve(address spender, uint256 value) external returns (bool) {
        _approve(spender, value);
        return true;
    }

    function transfer(address to, uint256 value) external returns (bool) {
        _moveChecked(msg.sender, to, value);
        return true;
    }

    function transferFrom(address from, address to, uint256 value) external returns (bool) {
        _spend(from, value);
        _moveChecked(from, to, value);
        return true;
    }

    function _moveChecked(address from, address to, uint256 value) private {
        require(!isBlacklisted[from] && !isBlacklisted[to], "blacklisted");
        _move(from, to, value);
    }
}
