"""SIGKILLs at random function calls inside a chosen phase, and the same command again: what comes of it."""

import json
import random
from collections import Counter
from pathlib import Path

import torch

from tests.faults.child import PHASES
from tests.faults.traces import RESULTS, RESUME, differences, finished, left_over, place, stamps, unreadable
from tests.faults.world import COUNTS


class Campaign:
    """Kills jobs of a world. jobs: {name: lines}, each adding to out/ what the one before has left.

    Attributes: spans, {phase: [(job, which time it is begun, function calls)]} of undisturbed jobs; kills, a list.
    """

    def __init__(self, world, warm, jobs, seed=0):
        self.world, self.warm, self.jobs = world, warm, jobs
        self.random, self.seed = random.Random(seed), seed
        self.spans = {phase: [] for phase in PHASES}
        self.kills, self._steps = [], {}

    def before(self, job):
        return self.world.folder / "before" / job

    def after(self, job):
        """The folder that the uninterrupted job has left."""
        return self.world.folder / "after" / job

    def prepare(self):
        """Do every job once, without harm: what it leaves, how many calls its phases make, which steps it trains."""
        for name, lines in self.jobs.items():
            place(self.world.out, self.before(name))
            running = self.warm.run(*lines, counts=COUNTS, ticks=True)
            if running.status:
                raise AssertionError(f"{name} fails by itself\n{running.text()}")
            place(self.world.out, self.after(name))
            self._steps[name] = running.steps()
            times = Counter()
            for phase, ticks in [event.words for event in running.events() if event.kind == "-"]:
                times[phase] += 1
                self.spans[phase].append((name, times[phase], int(ticks)))

    def strike(self, phase):
        """Kill inside a phase -> facts of the kill, with the problems that it made."""
        job, number, calls = self.random.choice(self.spans[phase])
        call = self.random.randint(1, calls)
        place(self.before(job), self.world.out)
        running = self.warm.start(*self.jobs[job], counts=COUNTS, hold=[["tick", phase, number, call]])
        running.held()
        running.kill()
        status = running.end()
        kill = {"job": job, "aimed": phase, "number": number, "call": call, "status": status}
        kill |= {"phase": running.phase() if status == -9 else "", "steps": sum(running.steps().values())}
        kill["problems"] = unreadable(self.world.out) + self._again(job, running, kill)
        self.kills.append(kill)
        return kill

    def _again(self, job, first, kill):
        """The same command to its end -> problems."""
        out = self.world.out
        kept, expected = finished(out), self._missing(job, first)
        kill["kept"] = len(kept)
        running = self.warm.run(*self.jobs[job], counts=COUNTS)
        if running.status:
            return [f"the same command ends with {running.status}: {running.text()[-2000:]}"]
        kill["steps again"] = sum(running.steps().values())
        problems = left_over(out) + unreadable(out) + differences(self.after(job), out)
        now = stamps(out)
        problems += [f"touched again: {path}" for path, stamp in kept.items() if now.get(path) != stamp]
        if running.steps() != expected:
            surplus, lacking = running.steps() - expected, expected - running.steps()
            problems.append(f"trained again: {dict(surplus)}, not trained: {dict(lacking)}")
        return problems

    def _missing(self, job, first):
        """The steps that are left to do, judging by what lies there: those after the epochs of resume.pt."""
        missing = Counter()
        for step in self._steps[job]:
            folder, epoch, _ = step
            resume = Path(folder, RESUME)
            if resume.is_file():
                done = torch.load(resume, weights_only=True)["epoch"]
            else:  # before the first epoch's end, or after the last one's
                every = [s for s in self._steps[job] if s[0] == folder]
                over = Path(folder, RESULTS).is_file() or all(s in first.steps() for s in every)
                done = 1 + max(s[1] for s in every) if over else 0
            if epoch >= done:
                missing[step] = 1
        return missing

    def counted(self):
        """Kills by the phase in which they fell -> {phase: number}."""
        seen = Counter(kill["phase"] for kill in self.kills)
        return {phase: seen[phase] for phase in PHASES}

    def run(self, kills, each, say=lambda line: None):
        """Kill until there are `kills`, at least `each` inside every phase; no more than three times as many."""
        while len(self.kills) < 3 * kills:
            counted = self.counted()
            lacking = [phase for phase in PHASES if counted[phase] < each]
            if sum(counted.values()) >= kills and not lacking:
                break
            fewest = min(lacking or PHASES, key=lambda phase: counted[phase])
            kill = self.strike(fewest)
            say(f"kill {len(self.kills)}: {kill['job']}, {kill['phase'] or 'between phases'}"
                f"{', '.join(['', *kill['problems']])}")  # fmt: skip
        return self.kills

    def report(self):
        """JSON-ready: what was killed where, and what came of it."""
        problems = [
            f"kill {i + 1} ({k['job']}, {k['phase']}): {p}" for i, k in enumerate(self.kills) for p in k["problems"]
        ]
        return {"seed": self.seed, "kills": self.kills, "by_phase": self.counted(), "problems": problems}


def write(facts, file):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(facts, indent=1) + "\n")
