import pytest

SMALL = ("--density", 0.05, "--steps", 2, "--prune-batch-size", 32, "--epochs", 1, "--batch-size", 512,
         "--engine", "dense", "--device", "cpu")  # fmt: skip


@pytest.mark.slow
def test_the_checks_as_text_and_as_json(cli):
    done = cli("sanity", *SMALL, "--seeds", 2, "--shuffles", 1)
    assert done.status == 0, done.err
    for check in ("as found", "shuffled", "other weights", "SNIP's layers", "dense"):
        assert check in done.out
    assert "95% confidence" in done.out
    rows = cli("sanity", *SMALL, "--seeds", 2, "--shuffles", 1, "--json").json
    assert len(rows) == 22 and all(0 <= row["accuracy"] <= 100 for row in rows)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", 1], "needs at least two different ones"),
        (["--shuffles", 0], "shuffles is 0"),
        (["--method", "snap"], "unknown method 'snap'"),
    ],
)
def test_mistakes(cli, arguments, message):
    done = cli("sanity", *SMALL, *arguments)
    assert done.status == 1 and message in done.err.replace("\n", " ")
