"""A student: a network that was distilled to sample in a few steps and with its teacher's guidance in every prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusion.formats import CONSISTENCY_SOLVER
from diffusion.spacing import UNIFORM
from diffusion.utils.errors import InputError

STUDENT_KEY = "student"  # of what files say of their network
TRAJECTORY, CONSISTENCY = "trajectory", "consistency"
SOLVERS = {TRAJECTORY: "ddim", CONSISTENCY: CONSISTENCY_SOLVER}  # by which each method's students are sampled
USUAL_STEPS = 4


@dataclass(frozen=True)
class Student:
    """What a network was distilled for. method: trajectory or consistency; guidance: the strength that it has learned.

    steps: the numbers of steps that it takes, rising. spacing: where they lie, as `diffusion.spacing` has it.
    guidance_interval: the lowest and highest noise level of its guidance; None: all.
    Raises InputError for another method, and for no steps.
    """

    method: str
    guidance: float
    steps: tuple[int, ...]
    spacing: str = UNIFORM
    guidance_interval: tuple[float, float] | None = None

    def __post_init__(self):
        if self.method not in SOLVERS:
            raise InputError(f"a student of method {self.method!r}: expected {' or '.join(SOLVERS)}")
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 1:
            raise InputError(f"a student of {self.steps} steps: expected rising numbers of steps")

    @property
    def solver(self) -> str:
        """Return the name of the solver that the student is sampled by."""
        return SOLVERS[self.method]

    @property
    def usual_steps(self) -> int:
        """Return the steps that it is sampled with where none are asked for: four, else the most that it takes."""
        return USUAL_STEPS if USUAL_STEPS in self.steps else self.steps[-1]

    def check_steps(self, steps: int) -> None:
        """Raise InputError for a number of steps that the student was not made for."""
        if steps not in self.steps:
            known = ", ".join(map(str, self.steps))
            raise InputError(f"{steps} sampling steps: the network is a student of {known} steps; take one of these")

    def check_guidance(self, guidance: float | None, interval: tuple[float, float] | None = None) -> None:
        """Raise InputError for another guidance strength, or interval, than the student has learned; None: not given."""
        if guidance is not None and guidance != self.guidance:
            raise InputError(
                f"guidance {guidance:g}: the network is a student with guidance {self.guidance:g} in every prediction; leave it out, "
                "or sample its teacher"
            )
        if interval is not None and tuple(interval) != self.guidance_interval:
            low, high = interval
            own = (
                "at all noise levels"
                if self.guidance_interval is None
                else "from {:g} to {:g}".format(*self.guidance_interval)
            )
            raise InputError(
                f"guidance interval {low:g} to {high:g}: the network is a student with guidance {own} in every prediction; leave it "
                "out, or sample its teacher"
            )

    def check_autoguidance(self, given: object) -> None:
        """Raise InputError where a weaker network is to guide; None: none is."""
        if given is not None:
            raise InputError(
                "autoguidance: the network is a student, which has its guidance in every prediction; leave it out"
            )

    def check_solver(self, solver: str | None) -> None:
        """Raise InputError for another solver than the student's; None: not given."""
        if solver not in (None, self.solver):
            raise InputError(
                f"{solver}: the network is a student that is sampled by {self.solver}; leave the solver out"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the student as plain values, which files store."""
        interval = None if self.guidance_interval is None else list(self.guidance_interval)
        return {
            "method": self.method,
            "guidance": self.guidance,
            "guidance_interval": interval,
            "steps": list(self.steps),
            "spacing": self.spacing,
        }


def read_student(stored: Any, source: object) -> Student | None:
    """Return the student that a file's metadata describe; None: the network is none. Raises InputError for damaged ones."""
    if stored is None:
        return None
    try:
        steps = tuple(int(number) for number in stored["steps"])
        levels = stored.get("guidance_interval")
        interval = None if levels is None else (float(levels[0]), float(levels[1]))
        return Student(str(stored["method"]), float(stored["guidance"]), steps, str(stored["spacing"]), interval)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise InputError(f"{source}: what it says of its student is damaged: {stored!r}") from None
