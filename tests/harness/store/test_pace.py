from skeletal.harness.store.pace import SHARE, Pace


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def saving(clock, seconds):
    def save():
        clock.now += seconds
        save.calls += 1

    save.calls = 0
    return save


def test_checkpoints_take_at_most_their_share_of_the_time():
    clock = Clock()
    pace, save = Pace(every=False, clock=clock), saving(clock, 0.25)
    for epoch in range(1, 1001):
        clock.now += 1.0
        if pace.due():
            pace.write(save, (epoch, 0))
    assert 1000 / (0.25 * SHARE + 1) - 1 <= save.calls <= 1000 / (0.25 * SHARE)


def test_runs_that_take_turns_share_the_time_for_checkpoints():
    clock = Clock()
    runs = [(Pace(every=False, runs=4, clock=clock), saving(clock, 0.25)) for _ in range(4)]
    for epoch in range(1, 1001):
        for pace, save in runs:
            clock.now += 1.0
            if pace.due():
                pace.write(save, (epoch, 0))
    seconds = 0.25 * sum(save.calls for _, save in runs)
    assert 0.9 * 4000 / SHARE <= seconds <= 4000 / SHARE + 4 * 0.25


def test_the_first_is_due_at_once_and_long_epochs_are_all_written():
    clock = Clock()
    pace, save = Pace(every=False, clock=clock), saving(clock, 0.25)
    for epoch in range(1, 11):
        assert pace.due()
        pace.write(save, (epoch, 0))
        clock.now += 0.25 * SHARE
    assert save.calls == 10


def test_every_is_every():
    clock = Clock()
    pace, save = Pace(every=True, clock=clock), saving(clock, 100.0)
    pace.write(save, (1, 0))
    assert pace.due()


def test_the_same_state_is_written_once():
    clock = Clock()
    pace, save = Pace(every=True, clock=clock), saving(clock, 1.0)
    for at in ((1, 0), (1, 0), (1, 3), (1, 3), (2, 0)):
        pace.write(save, at)
    assert save.calls == 3 and pace.saved == (2, 0)
