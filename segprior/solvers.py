"""The solver that a user names: form and number of steps become settings.

fixed_point    times from 1 to 0.8 in equal steps (3 steps: 1, 0.9, 0.8)
stop           Adam with the gradient eps_hat - eps, times from 0.9 to 0.2
full           Adam with the paper's gradient through the network, times from 0.9 to 0.2
"""

from segprior.errors import SettingError
from segprior.prior.gradient import Full, Stop
from segprior.prior.solver import FixedPoint, Solver, falling

NAMES = ("fixed_point", "stop", "full")


def solver_named(name: str, steps: int | None = None, *, t_image: float = 0.0, turns: int = 1) -> Solver:
    """Give a solver by name with `steps` steps, None for its default: 3 (or a step a turn), 50 for the gradient forms.

    t_image: time of the image in [0, 1]; above 0, p(image | labels) has a say too. turns: of the image, 1 to 8, that
    fixed_point goes through, one a step. Raises SettingError.
    """
    if turns > 1 and name != "fixed_point":
        raise SettingError(f"wanted turns with the solver fixed_point, got {name}; leave them out or change the solver")
    if steps is not None and turns > max(1, steps):
        raise SettingError(f"wanted a step or more for each of {turns} turns, got {steps} steps")
    match name:
        case "fixed_point":
            times = falling(1.0, 0.8, max(3, turns) if steps is None else steps)
            return FixedPoint(times=times, t_image=t_image, turns=turns)
        case "stop":
            return Stop(times=falling(0.9, 0.2, 50 if steps is None else steps), t_image=t_image)
        case "full":
            return Full(times=falling(0.9, 0.2, 50 if steps is None else steps), t_image=t_image)
    raise SettingError(f"wanted the solver {', '.join(NAMES)}, got {name!r}")
