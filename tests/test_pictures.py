"""Pictures of values at the ends of what they can be, and pictures that go to other processes."""

import math
import pickle

import pytest

import hfprune
from hfprune.publishing.charts import draw_accuracy, pictures_of
from hfprune.publishing.record import PruningRecord
from hfprune.publishing.report import comparison_table
from hfprune.showing.picture import theme_of
from hfprune.sweeping.points import interval_of_mean
from tests.support.plans import uneven_plan
from tests.support.sweeps import curve, point
from tests.support.tiny import tiny_model

SIZES = {"dense": {"macs": 10, "sequence_length": 4}, "pruned": {"macs": 5, "sequence_length": 4}}


def record_with(sizes=SIZES, config=None, **metrics):
    return PruningRecord(
        base_model="bert", model_class="BertModel", config=config or {}, plan_digest="", sizes=sizes, metrics=metrics
    )


def markers_of(axes):
    return [line.get_marker() for container in axes.containers for line in container.lines[:1]]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_interval_holds_its_mean(value):
    """Rounding would put the mean outside for a quarter of these, and matplotlib refuses such error bars."""
    for samples in range(2, 400):
        low, high = interval_of_mean([value] * samples)
        assert low <= value <= high


def test_a_sweep_in_which_all_or_nothing_is_right():
    found = curve(point(0, per_sample=(1.0,) * 13), point(0.5, per_sample=(0.0,) * 13))
    assert markers_of(found.plot().axes[0]) == ["s", "o"]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_metric_that_is_not_finite_is_not_drawn(value):
    falling = record_with(dense={"perplexity": 20.0}, pruned={"perplexity": value})
    assert "accuracy_against_size.png" in pictures_of(falling)
    assert markers_of(draw_accuracy(falling, theme_of("light")).axes[0]) == ["s"]
    nowhere = record_with(dense={"perplexity": value}, pruned={"perplexity": value})
    assert pictures_of(nowhere) == ["kept_units.png"]


def test_a_figure_can_be_pickled():
    figure = uneven_plan(tiny_model("bert")).plot()
    again = pickle.loads(pickle.dumps(figure))
    assert again.axes[0].get_title() == figure.axes[0].get_title()
    assert again._repr_png_().startswith(b"\x89PNG")


def test_the_table_of_a_record_without_sizes():
    model = tiny_model("bert")
    small = hfprune.apply_plan(model, uneven_plan(model))
    record = small.pruning_record.with_(metrics={"dense": {"accuracy": 0.9}, "pruned": {"accuracy": 0.8}})
    assert comparison_table(record).splitlines()[1].split() == ["accuracy", "0.9000", "0.8000"]


def test_a_record_says_what_a_mapping_of_sparsities_is_of():
    by_pattern = {"sparsity": {"*.attention": 0.25, "*.ffn": 0.5}, "budget": "macs"}
    text = str(record_with(config=by_pattern))
    assert "sparsity asked for: 0.25 of the units of *.attention, 0.5 of the units of *.ffn" in text
