"""What people read about the losses of a validation."""

from lightning_app.languages import find_language
from lightning_app.training.metrics import Losses


def format_losses(losses: Losses, before: Losses, target: str | None) -> str:
    """Returns loss (nats per token) and bits per byte of every language, and the changes where ``before`` has it."""
    lines = [f"{'language':<22}{'loss':>9}{'change':>9}{'bits/byte':>11}{'change':>9}"]
    for code, (loss, bits) in losses.items():
        language = find_language(code)
        name = f"{language.name} ({code})" if language.name != code else code
        mark = " <- target" if code == target else ""
        if code in before:
            changes = f"{loss - before[code][0]:>+9.4f}{bits:>11.4f}{bits - before[code][1]:>+9.4f}"
        else:
            changes = f"{'':>9}{bits:>11.4f}"
        lines.append(f"{name:<22}{loss:>9.4f}{changes}{mark}")
    return "\n".join(lines)
