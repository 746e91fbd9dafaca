"""Train the bundled language identification: the demo recogniser's first layers, and a classifier of four languages.

    .venv/bin/python -m experiments.demo.train_lid --minutes 14     # after train_demo
    .venv/bin/python -m experiments.demo.bundle --only lid
    .venv/bin/python -m experiments.demo.evaluate --task lid

Of the recogniser its convolutions, frozen, and two of five layers, without adapters: 0.64 M parameters, 2.6 MB. Half
of the rows are whole clips, half are cuts of clips end to end, 0.4 to 8 s, in white noise 10 to 90 dB below the speech.

Result through `mms_jax.load_lid`: accuracy, mean probability of the right language (number of recordings). Clips are
of words that no training clip holds, 0.4 to 3.9 s long, 195 of the 800 a single word; 1 s and 2 s are the middles of
those that last so long; 8 s and 30 s are the clips end to end, cut.

| language | whole clips | 1 s | 2 s | 8 s | 30 s |
| --- | --- | --- | --- | --- | --- |
| eng | 100.0% 0.996 (200) | 100.0% 0.990 (146) | 100.0% 0.998 (82) | 100.0% 1.000 (43) | 100.0% 1.000 (11) |
| fra | 99.0% 0.988 (200) | 100.0% 0.997 (139) | 100.0% 1.000 (49) | 100.0% 1.000 (36) | 100.0% 1.000 (9) |
| deu | 99.0% 0.983 (200) | 100.0% 0.990 (156) | 100.0% 0.998 (72) | 100.0% 1.000 (42) | 100.0% 1.000 (11) |
| spa | 100.0% 0.999 (200) | 100.0% 0.998 (153) | 100.0% 1.000 (71) | 100.0% 1.000 (42) | 100.0% 1.000 (11) |

The bundled parameters come of one run of 1,060 steps, 14 minutes on a third to a half of one core (an idle one does
about 110 s of audio a second, 3 steps):

    train_lid --steps 2000 --minutes 14 --evaluate-every 60 --recogniser .work/demo/run4/best.safetensors

Its mean loss over the table's cells, on the dev clips, is 0.0079. Three layers, 393 steps: 0.0242; two, 711 steps whose
learning rate fell at once instead of slowly: 0.0114.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.demo.batches import prefetch
from experiments.demo.evaluate import lid_recordings, lid_score
from experiments.demo.lid_batches import LidBatch, lid_batches
from experiments.demo.loop import Params, Trees, add_options, apply_gradients, cache_compilations, fit, make_optimizer
from experiments.demo.sentences import LANGUAGES
from experiments.demo.synthesize import HELD_OUT_CLIPS, TRAIN_CLIPS, WORK, load_corpus
from experiments.demo.train_demo import CONFIG, restore
from mms_jax.checkpoint import ClassifierCheckpoint, classifier_shapes
from mms_jax.config import Wav2Vec2Config
from mms_jax.features import FeatureExtractor
from mms_jax.models import ClassifierOutput, Wav2Vec2ForSequenceClassification
from mms_jax.models.trees import flatten, unflatten
from mms_jax.pipelines.lid import LanguageIdentifier

LABELS = tuple(LANGUAGES)
NUM_LAYERS = 2
FROZEN = "wav2vec2/feature_extractor/"  # the convolutions, as usual when a recogniser becomes something else


def lid_config(num_layers: int) -> Wav2Vec2Config:
    """The recogniser's architecture without adapters, cut after `num_layers`."""
    return CONFIG.replace(num_hidden_layers=num_layers, adapter_attn_dim=None, classifier_proj_size=64)


def init_params(config: Wav2Vec2Config, *, recogniser: Params, seed: int) -> Trees:
    """Frozen and trained parameters: the recogniser's where it has them, the classifier drawn."""
    model = Wav2Vec2ForSequenceClassification(config, len(LABELS))
    params = {path: recogniser[path] for path in classifier_shapes(config, len(LABELS)) if path.startswith("wav2vec2/")}

    @jax.jit  # what is not asked for is not computed
    def draw_head() -> Params:
        drawn = flatten(model.init(jax.random.key(seed), jnp.zeros((1, config.min_samples)))["params"])
        return {path: value for path, value in drawn.items() if path not in params}

    params |= draw_head()
    frozen = {path: value for path, value in params.items() if path.startswith(FROZEN)}
    return frozen, {path: value for path, value in params.items() if path not in frozen}


def mean_loss(trained: Params, frozen: Params, batch: LidBatch, *, config: Wav2Vec2Config) -> jax.Array:
    """Cross-entropy of a batch's rows."""
    model = Wav2Vec2ForSequenceClassification(config, len(LABELS))
    params = unflatten(frozen | trained)
    out = model.apply({"params": params}, jnp.asarray(batch.input_values), jnp.asarray(batch.mask))
    assert isinstance(out, ClassifierOutput)  # nothing is mutable, so apply returns no state beside it
    return optax.softmax_cross_entropy_with_integer_labels(out.logits, jnp.asarray(batch.labels)).mean()


@functools.partial(jax.jit, static_argnames="config", donate_argnums=(0, 1))
def train_step(trees: Trees, state, batch: LidBatch, rate, *, config: Wav2Vec2Config):
    """One update of the second tree; returns (trees, optimiser state, loss, gradient norm before the clip)."""
    frozen, trained = trees
    loss, grads = jax.value_and_grad(functools.partial(mean_loss, config=config))(trained, frozen, batch)
    trained, state = apply_gradients(trained, state, grads, rate=rate)
    return (frozen, trained), state, loss, optax.tree.norm(grads)


def identifier(trees: Trees, *, config: Wav2Vec2Config) -> LanguageIdentifier:
    """The model as users have it."""
    frozen, trained = trees
    checkpoint = ClassifierCheckpoint(config, LABELS, unflatten(frozen | trained))
    return LanguageIdentifier("in training", checkpoint, FeatureExtractor(), jnp.float32, scan_layers=False)


def dev_score(trees: Trees, *, config: Wav2Vec2Config) -> float:
    """Mean negative log-probability of the right language, over the conditions and languages of the table."""
    lid = identifier(trees, config=config)
    losses = []
    for code in LABELS:
        corpus = load_corpus(code, split="dev", count=HELD_OUT_CLIPS)
        scores = {name: lid_score(lid, clips, code=code) for name, clips in lid_recordings(corpus).items()}
        losses += [score.loss for score in scores.values()]
        print("   ", code, *(f"{name} {score.accuracy:.3f}" for name, score in scores.items()))
    return float(np.mean(losses))


def load_batches(seed: int) -> Iterator[LidBatch]:
    """Training batches from the recogniser's corpora, made in the background."""
    corpora = {code: load_corpus(code, split="train", count=TRAIN_CLIPS[code]) for code in LABELS}
    return prefetch(lid_batches(corpora, seed=seed))


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, peak=1e-3, output=WORK / "lid")
    parser.add_argument("--layers", type=int, default=NUM_LAYERS, help="of the recogniser's, from the first")
    parser.add_argument("--recogniser", type=Path, default=WORK / "run" / "best.safetensors")
    options = parser.parse_args()
    cache_compilations()
    config = lid_config(options.layers)
    trees = init_params(config, recogniser=restore(options.recogniser)[0], seed=options.seed)
    print(f"{sum(x.size for x in jax.tree.leaves(trees)) / 1e6:.2f} M parameters", flush=True)
    fit(
        trees,
        state=make_optimizer().init(trees[1]),
        stream=load_batches(options.seed),
        train_step=functools.partial(train_step, config=config),
        evaluate=lambda trees, final: dev_score(trees, config=config),
        options=options,
    )


if __name__ == "__main__":
    main()
