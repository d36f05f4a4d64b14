"""Ask label-studio-sdk whether it takes tasks; run by the Python that it is installed for.

python label_studio_check.py CONFIG.xml TASKS.json
"""

import json
import sys
from pathlib import Path

from label_studio_sdk.label_interface import LabelInterface  # type: ignore[import-not-found]

interface = LabelInterface(Path(sys.argv[1]).read_text(encoding="utf-8"))
interface.validate()
tasks = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
for task in tasks:
    # Together the two end in a TypeError of the library's own (2.1.2).
    predictions = task.pop("predictions")
    if not interface.validate_task(task):
        sys.exit(f"no task: {task}")
    for prediction in predictions:
        if not interface.validate_prediction(prediction):
            sys.exit(f"no prediction: {prediction}")
sys.stdout.write(f"{len(tasks)}\n")
