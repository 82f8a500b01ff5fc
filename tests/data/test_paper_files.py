"""The result files of the paper's code, in the forms in which its scripts write them."""

import pickle

import numpy as np
import pytest
import torch

from xgray.data.paper_files import read_neuron_activations, read_perplexities, read_sentence_states
from xgray.errors import InputError


@pytest.mark.parametrize("names", [("pre", "post"), ("pre_dpo", "post_dpo")])
def test_neuron_activations_are_means_by_language(tmp_path, names):
    content = {names[0]: {"en": np.mean([0.5, 0.25]), "zh": 0.5}, names[1]: {"en": -0.25, "zh-hans": 0.0}}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    assert read_neuron_activations(tmp_path / "a.pkl") == ({"en": 0.375, "zh-hans": 0.5}, {"en": -0.25, "zh-hans": 0.0})
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(InputError, match="means by language"):
        read_neuron_activations(tmp_path / "a.pkl")


def test_perplexities_are_a_list(tmp_path):
    torch.save([np.exp(2.5), np.exp(3.0)], tmp_path / "output-rtp_lx_en_ppl.pt")
    assert read_perplexities(tmp_path / "output-rtp_lx_en_ppl.pt").tolist() == [np.exp(2.5), np.exp(3.0)]
    torch.save({"a": 1}, tmp_path / "other_ppl.pt")
    with pytest.raises(InputError, match="a list of perplexities"):
        read_perplexities(tmp_path / "other_ppl.pt")


def test_sentence_states_are_put_together_in_the_order_of_the_texts(tmp_path):
    states = torch.randn(3, 110, 4)
    files = []
    for begin in (0, 25, 100):
        end = {0: 25, 25: 100, 100: 110}[begin]
        files.append(tmp_path / f"mGPT_en_sentence_embeddings_all_layers_LBM_{begin}_{end}.pt")
        torch.save(list(states[:, begin:end]), files[-1])
    assert np.array_equal(read_sentence_states(files[::-1]), states.numpy())
    with pytest.raises(InputError, match="begins with text 100, but the file before it ends with text 25"):
        read_sentence_states([files[0], files[2]])
    with pytest.raises(InputError, match="name must end with _LBM_BEGIN_END"):
        read_sentence_states([tmp_path / "mGPT_en.pt"])
