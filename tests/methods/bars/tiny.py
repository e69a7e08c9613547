"""A search by BARS of seconds, on the real digits."""

import bitnas.methods.bars as bars

SPACE = {"name": "tiny", "layout": "NRN", "channels": 4, "widths": [0.5, 1.0], "input_size": [1, 8, 8]}
CONTROLLER = {"epochs": 2, "warmup_epochs": 0, "batch_size": 64, "architecture_lr": 0.1}
TINY = bars.preset(
    "digits",
    space=SPACE,
    controller=CONTROLLER,
    samples=3,
    objectives=("accuracy", "flops"),
    train_epochs=0,
    calibration_batches=1,
    calibration_size=128,
    train_fraction=0.2,
    val_fraction=0.1,
    latency_batch=1,
    workers=0,
)
