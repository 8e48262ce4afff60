"""``evaluate``: compares voices on recordings that they were not trained on."""

from vits_trainer.config.voices import EvaluateConfig
from vits_trainer.evaluation.evaluate import evaluate
from vits_trainer.tracking.wandb_run import report_evaluation
from vits_trainer.utils.logging import log_to_console


def run(config: EvaluateConfig) -> int:
    """Prints tables of the metrics, and logs them to W&B if asked to."""
    log_to_console()
    result = evaluate(config)
    print(result)
    print(f"All metrics: {result.output_dir / 'scores.json'}   Speech: {result.output_dir}/speech_<number>/")
    if config.report_to == "wandb":
        report_evaluation(result.output_dir, config, result.record)
    return 0
