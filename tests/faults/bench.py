"""What the cases of faults share: a world, the forking process, and what uninterrupted jobs leave."""

from tests.faults.traces import differences, left_over, place, unreadable
from tests.faults.world import COUNTS


class Bench:
    """Runs jobs in a world. Attributes: world, warm, out (where the jobs write)."""

    def __init__(self, world, warm):
        self.world, self.warm, self.out = world, warm, world.out
        self._whole = world.folder / "whole"

    def clear(self):
        """An empty out/."""
        place(None, self.out)

    def start(self, *lines, **more):
        return self.warm.start(*lines, **({"counts": COUNTS} | more))

    def run(self, *lines, status=0, **more):
        """A job to its end, which has that exit status -> Running."""
        running = self.start(*lines, **more)
        found = running.end()
        assert found == status, f"exit status {found}, expected {status}\n{running.text()}"
        return running

    def whole(self, name, *lines):
        """The folder that these lines leave when nothing goes wrong, made once; out/ is empty afterwards."""
        folder = self._whole / name
        if not folder.is_dir():
            self.clear()
            self.run(*lines)
            place(self.out, folder)
        self.clear()
        return folder

    def goes_on(self, whole, *lines):
        """The same lines again reach the end, with the same files as in `whole` -> Running."""
        problems = unreadable(self.out)
        running = self.run(*lines)
        problems += left_over(self.out) + unreadable(self.out) + differences(whole, self.out)
        assert not problems, "\n".join(problems)
        return running

    def stopped(self, name, lines, phase, number, signum, status):
        """Start `lines`, send a signal when that phase begins for the `number`th time, wait for the end -> Running."""
        running = self.start(*lines, hold=[["+", phase, number]])
        assert running.held(), f"{name} ends before {phase} {number}\n{running.text()}"
        running.kill(signum)
        found = running.end()
        assert found == status, f"exit status {found}, expected {status}\n{running.text()}"
        return running


def one_error(running, *words):
    """The only complaint of a job is one line, with those words in it -> the line."""
    text = running.text()
    assert "Traceback" not in text, text
    assert len(running.errors()) == 1 and text.rstrip().endswith(running.errors()[0]), text
    lacking = [word for word in words if str(word) not in running.errors()[0]]
    assert not lacking, f"lacks {lacking}: {running.errors()[0]}"
    return running.errors()[0]


def quiet(running):
    """A job that was told to stop says no more than the log does."""
    assert "Traceback" not in running.text() and not running.errors(), running.text()
