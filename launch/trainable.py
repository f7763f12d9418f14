"""A job as Ray Tune runs it, on whatever node it is put; imported where Ray is."""

from typing import Any

from ray import tune

from experiments import workdir
from launch.watching import Plan, Watch


class JobTrainable(tune.Trainable):
    """Starts the job's process, and tells Tune what it tells; Tune's `stop` ends it, saved."""

    def setup(self, config: dict[str, Any], plan: Plan) -> None:
        """Called in a new process of Ray's: `config` has the number of the job, or the values of its trial."""
        workdir.at(plan.root)  # a bucket is to be reached from every node
        self.plan, self.watch = plan, None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called where Ray uses the process again for another job."""
        self.cleanup()
        self.watch = Watch(self.plan, self.plan.job(new_config))
        return True

    def step(self) -> dict[str, Any]:
        """What is new; Tune asks again until it is done."""
        return self.watch.tell()

    def cleanup(self) -> None:
        """Called when Tune stops the job."""
        if self.watch is not None:
            self.watch.stop()
