"""A monotonic clock that the test moves; the fixture `clock` puts it in the place of the real one."""


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now
