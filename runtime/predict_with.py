"""main.py --predict-with: score several trained models together, and predict the test images with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from callbacks.predictions_saver import PredictionsSaverCallback
from callbacks.scorer import ScorerCallback
from data.dataset import EnsembleDataset, TestImageDataset
from data.fetcher import DatasetFetcher
from helpers import format_size, pluralize
from nn.ensemble import Ensemble
from runtime.distributed import is_main_process
from runtime.errors import require
from runtime.files import save_table


def predict_with(hp: Any, run: Any) -> None:
    """Steps 5 and 6 of main() with the mean probabilities of run.models. Of `hp`, threshold and tta count."""
    ds_fetcher = DatasetFetcher(run.layout, run.known_reader)
    ds_fetcher.download_dataset(test_images=run.predict)
    X, y = ds_fetcher.get_unseen_files(run.seen)
    full_x_test = ds_fetcher.get_test_files(predict=run.predict)
    models, reader = pluralize(len(run.models), "model"), ds_fetcher.reader
    require(X or full_x_test, f"No image can be scored: {models} trained on all. Pass fewer, or add images.")
    ensemble = Ensemble(run.models, run.machine)
    for path, net in zip(run.models, ensemble.nets, strict=True):
        print(f"model       {path}: {type(net.net).__name__} at {format_size(net.net.in_shape[1:])} pixels")
    print(f"data        {pluralize(len(X), 'image')} to score, of cars or groups that none of them trained on; "
          f"{len(full_x_test):,} to predict\nmachine     {run.machine.reasons}\n")

    def loader(paths: Sequence[Path]) -> DataLoader:
        datasets = [TestImageDataset(paths, *sizes, reader, hp.tta) for sizes in ensemble.sizes]
        return run.eval_loader(EnsembleDataset(datasets))

    scorer_cb = ScorerCallback(X, y, hp.threshold, ds_fetcher.groups, reader)
    ensemble.predict(loader(X), [scorer_cb], title="score")
    if X and is_main_process():
        scores = run.submission.with_name("score.csv")
        print(f"{scorer_cb.summary()}\nscores      {scores}")
        save_table(scorer_cb.table(), scores)
    pred_saver_cb = PredictionsSaverCallback(run.submission, ds_fetcher.image_size, hp.threshold)
    ensemble.predict(loader(full_x_test), [pred_saver_cb])
    pred_saver_cb.close_saver()
    if full_x_test:
        print(ds_fetcher.next_step(run.submission))
