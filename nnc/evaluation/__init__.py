"""What compression costs: tasks, metrics, distance to the original network, sweeps over the rate.

    task = make_task("classification", "test.npz")
    report = evaluate("small.safetensors", task, model="digits_cnn.py:build", original="digits_cnn.safetensors")
    report.value, report.fidelity.kl
"""
from nnc.evaluation.fidelity import Fidelity, LayerError
from nnc.evaluation.images import classification
from nnc.evaluation.language import perplexity
from nnc.evaluation.models import build_model
from nnc.evaluation.reference import Reference
from nnc.evaluation.report import Report, evaluate
from nnc.evaluation.sentences import similarity
from nnc.evaluation.sweep import Point, sweep
from nnc.evaluation.task import Batches, Task
from nnc.evaluation.tasks import make_task
from nnc.evaluation.tensors import TensorLoss, predict_losses

__all__ = ["Batches", "Fidelity", "LayerError", "Point", "Reference", "Report", "Task", "TensorLoss", "build_model", "classification",
           "evaluate", "make_task", "perplexity", "predict_losses", "similarity", "sweep"]
