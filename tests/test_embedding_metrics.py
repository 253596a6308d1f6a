"""Measures and losses of embeddings, against what they say in words."""

import numpy as np
import pytest
import torch
from scipy import stats

from hfprune.measuring.embeddings import (
    cosines_to,
    embedding_metrics,
    neighbours_found,
    pair_correlation,
    read_pairs,
    similarity_correlation,
)
from hfprune.recovery.losses.embeddings import embeddings_loss, similarities_loss


@pytest.fixture
def pair():
    dense = torch.randn(30, 6)
    return dense + 0.4 * torch.randn(30, 6), dense


def cosine(one, two):
    return float(one @ two / one.norm() / two.norm())


class TestMeasures:
    def test_cosines(self, pair):
        mine, theirs = pair
        expected = [cosine(one, two) for one, two in zip(mine, theirs, strict=True)]
        assert cosines_to(mine, theirs).tolist() == pytest.approx(expected, abs=1e-5)
        found = embedding_metrics(mine, theirs)
        assert found["cosine"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert found["cosine_5"] == pytest.approx(np.quantile(expected, 0.05), abs=1e-5)

    def test_similarities_of_all_pairs(self, pair):
        mine, theirs = pair
        places = [(i, j) for i in range(30) for j in range(i)]
        by_me = [cosine(mine[i], mine[j]) for i, j in places]
        by_them = [cosine(theirs[i], theirs[j]) for i, j in places]
        assert similarity_correlation(mine, theirs) == pytest.approx(stats.spearmanr(by_me, by_them)[0], abs=1e-6)

    def test_neighbours(self, pair):
        mine, theirs = pair
        recalls, gains = [], []
        for query in range(30):
            others = [other for other in range(30) if other != query]
            best = sorted(others, key=lambda other: -cosine(theirs[query], theirs[other]))[:10]
            found = sorted(others, key=lambda other: -cosine(mine[query], mine[other]))[:10]
            recalls.append(len(set(best) & set(found)) / 10)
            gained = sum((10 - best.index(text)) / np.log2(rank + 2) for rank, text in enumerate(found) if text in best)
            gains.append(gained / sum((10 - rank) / np.log2(rank + 2) for rank in range(10)))
        found = neighbours_found(mine, theirs)
        assert found == pytest.approx({"ndcg_10": np.mean(gains), "recall_10": np.mean(recalls)}, abs=1e-6)

    def test_lengths_do_not_count(self, pair):
        mine, theirs = pair
        lengths = torch.rand(30, 1) + 0.5
        assert embedding_metrics(mine * lengths, theirs) == pytest.approx(embedding_metrics(mine, theirs), abs=1e-5)

    def test_another_corpus_is_refused(self, pair):
        mine, theirs = pair
        with pytest.raises(ValueError, match=r"got \(29, 6\) and \(30, 6\)"):
            embedding_metrics(mine[1:], theirs)

    def test_pairs_that_people_scored(self, tmp_path):
        (tmp_path / "sts.csv").write_text('sentence1,sentence2,score\n"a, b",c,4.5\nd,e,0\nf,g,2\n')
        pairs = read_pairs(tmp_path / "sts.csv")
        assert pairs.first == ["a, b", "d", "f"]
        assert pairs.scores == [4.5, 0.0, 2.0]
        first = torch.tensor([[1.0, 0.0]] * 3)
        second = torch.tensor([[1.0, 0.1], [0.0, 1.0], [1.0, 1.0]])
        assert pair_correlation(first, second, pairs.scores) == pytest.approx(1.0)
        assert pair_correlation(first, second, [0, 2, 4.5]) == pytest.approx(-0.5)

    def test_a_file_of_something_else(self, tmp_path):
        (tmp_path / "sts.tsv").write_text("sentence1\tsentence2\tscore\na\tb\tvery\n")
        with pytest.raises(ValueError, match=r"line 2: the score 'very' is no number"):
            read_pairs(tmp_path / "sts.tsv")
        (tmp_path / "sts.csv").write_text("text,label\na,1\n")
        with pytest.raises(ValueError, match=r"it has text, label and 1 rows"):
            read_pairs(tmp_path / "sts.csv")


class TestLosses:
    def test_of_vectors_of_length_one_it_goes_by_the_cosine(self, pair):
        mine, theirs = (torch.nn.functional.normalize(embeddings) for embeddings in pair)
        expected = 2 * (1 - cosines_to(mine, theirs).mean())
        assert float(embeddings_loss(mine, theirs)) == pytest.approx(float(expected), abs=1e-5)

    def test_of_similarities(self, pair):
        mine, theirs = pair
        places = [(i, j) for i in range(30) for j in range(30) if i != j]
        missed = sum((cosine(mine[i], mine[j]) - cosine(theirs[i], theirs[j])) ** 2 for i, j in places)
        of_them = sum(cosine(theirs[i], theirs[j]) ** 2 for i, j in places)
        assert float(similarities_loss(mine, theirs)) == pytest.approx(missed / of_them, rel=1e-4)
        # a turned space has the same similarities
        turn, _ = torch.linalg.qr(torch.randn(6, 6))
        assert float(similarities_loss(theirs @ turn, theirs)) == pytest.approx(0, abs=1e-10)
        assert float(similarities_loss(mine[:1], theirs[:1])) == 0

    def test_other_sizes_are_refused(self, pair):
        with pytest.raises(ValueError, match=r"student embeddings are \(30, 5\), teacher embeddings \(30, 6\)"):
            embeddings_loss(pair[0][:, :5], pair[1])
