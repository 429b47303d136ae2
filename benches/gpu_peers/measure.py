"""Times by events, of several contenders that run alternately on a hot chip."""

import math
import time
from statistics import median

import torch

from gpu_peers.ours import recorded

# A sample is as many runs as take this long together, so that the gaps between samples do not count.
SAMPLE_MS = 15.0
MAX_RUNS = 200


class Contender:
    """Something to run. Its samples are milliseconds a run."""

    def __init__(self, name, run):
        self.name, self.run = name, run
        self.samples, self.runs = [], 1

    def estimate(self):
        self.run()
        start = recorded()
        self.run()
        end = recorded()
        torch.cuda.synchronize()
        self.runs = max(1, min(MAX_RUNS, math.ceil(SAMPLE_MS / max(start.elapsed_time(end), 1e-3))))

    def begin(self):
        """Puts a sample into the stream; the result reads it once the stream has run."""
        start = recorded()
        for _ in range(self.runs):
            self.run()
        end = recorded()
        return lambda: self.samples.append(start.elapsed_time(end) / self.runs)

    @property
    def ms(self):
        return median(self.samples)

    @property
    def spread(self):
        """Half of what lies between the quartiles, of the median."""
        ordered = sorted(self.samples)
        quarter = len(ordered) // 4
        return (ordered[-1 - quarter] - ordered[quarter]) / 2 / self.ms


class Stages(Contender):
    """The stages of a plan: milliseconds of each."""

    def __init__(self, ours):
        super().__init__("stages", ours.run)
        self.ours, self.stages = ours, {}

    def begin(self):
        runs = [self.ours.run_stages() for _ in range(self.runs)]

        def read():
            total = {}
            for events in runs:
                for (stage, start), (_, end) in zip(events, events[1:]):
                    total[stage] = total.get(stage, 0.0) + start.elapsed_time(end) / self.runs
            for stage, ms in total.items():
                self.stages.setdefault(stage, []).append(ms)
            self.samples.append(sum(total.values()))

        return read

    def stage_ms(self, stage):
        return median(self.stages.get(stage, [0.0]))


def alternate(contenders, seconds, warm_up=1.0, least=3, most=25):
    """Samples all contenders in turn for about so many seconds, after a warm-up in which they take turns as well."""
    for contender in contenders:
        contender.estimate()
    warm_until = time.monotonic() + warm_up
    while time.monotonic() < warm_until:
        for contender in contenders:
            for _ in range(contender.runs):
                contender.run()
        torch.cuda.synchronize()
    until = time.monotonic() + max(seconds - warm_up, 0.0)
    for index in range(most):
        # Who runs after whom changes from round to round.
        turn = index % len(contenders)
        reads = [contender.begin() for contender in contenders[turn:] + contenders[:turn]]
        torch.cuda.synchronize()
        for read in reads:
            read()
        if index + 1 >= least and time.monotonic() > until:
            break
