// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

/// A price feed as Chainlink's AggregatorV3Interface describes it, which tells what a test set.
contract PriceFeed {
    uint8 public immutable decimals;
    uint80 private roundId;
    int256 private answer;
    uint256 private updatedAt;
    uint80 private answeredInRound;

    constructor(uint8 decimals_) {
        decimals = decimals_;
    }

    function set(uint80 roundId_, int256 answer_, uint256 updatedAt_, uint80 answeredInRound_) external {
        roundId = roundId_;
        answer = answer_;
        updatedAt = updatedAt_;
        answeredInRound = answeredInRound_;
    }

    /// Reverts, as aggregators do, before the first round.
    function latestRoundData() external view returns (uint80, int256, uint256, uint256, uint80) {
        require(roundId > 0, "No data present");
        return (roundId, answer, updatedAt, updatedAt, answeredInRound);
    }
}
