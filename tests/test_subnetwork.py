import re

import pytest
import torch

from lightning_app.errors import UserError
from lightning_app.identity import ModelIdentity
from lightning_app.languages import PAPER_LANGUAGES, find_language, known_languages
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.subnetworks import Subnetworks, read_released_masks, read_subnetworks
from lightning_app.reports.neurons import describe_subnetworks, format_subnetworks

LLAMA = ModelIdentity("Llama-3.1-8B", "", "", 32, 14336, 4096, 8_030_261_248)
NEMO = ModelIdentity("Mistral-Nemo-12B", "", "", 40, 14336, 5120, 12_247_782_400)
ORDER = ",".join(PAPER_LANGUAGES)

# language: neurons, millions of parameters, per cent of the model; of Llama-3.1-8B and of Mistral-Nemo-12B
TABLE = {
    "af": (2581, 31.7, 0.39, 3557, 54.6, 0.45), "cy": (6020, 74.0, 0.92, 8239, 126.6, 1.03),
    "et": (3204, 39.4, 0.49, 3815, 58.6, 0.48), "is": (5033, 61.8, 0.77, 5644, 86.7, 0.71),
    "ka": (1150, 14.1, 0.18, 2028, 31.1, 0.25), "lt": (2978, 36.6, 0.46, 3840, 59.0, 0.48),
    "lv": (3212, 39.5, 0.49, 3741, 57.5, 0.47), "mk": (1743, 21.4, 0.27, 2403, 36.9, 0.30),
    "mt": (3015, 37.0, 0.46, 3611, 55.5, 0.45), "ne": (4625, 56.8, 0.71, 5567, 85.5, 0.70),
    "sk": (1940, 23.8, 0.30, 2310, 35.5, 0.29), "sl": (2046, 25.1, 0.31, 2365, 36.3, 0.30),
}  # fmt: skip


@pytest.mark.parametrize(("file", "model", "at"), [("llama-3.1-5.pt", LLAMA, 0), ("mistral-nemo-5.pt", NEMO, 3)])
def test_released_masks_give_every_number_of_the_papers_table(file, model, at, shared):
    described = describe_subnetworks(read_subnetworks(shared / "masks" / file, ORDER), model)
    rows = {row["short"]: row for row in described["languages"]}
    assert set(rows) == set(TABLE)
    for short, figures in TABLE.items():
        neurons, millions, percent = figures[at : at + 3]
        assert rows[short]["neurons"] == neurons
        # The paper rounds some figures twice: 31.15 M stands there as 31.1.
        assert rows[short]["parameters"] / 1e6 == pytest.approx(millions, abs=0.051)
        assert round(100 * rows[short]["share_of_model"], 2) == pytest.approx(percent)
    assert described["union_share"] == pytest.approx(0.05, abs=1e-5)
    assert max(max(row["neurons_per_layer"]) for row in described["languages"]) == (1152 if at == 0 else 1213)
    if at == 0:
        assert described["overlap"]["lv"]["lt"] == pytest.approx(0.23, abs=5e-3)
        assert described["overlap"]["mk"]["sl"] == pytest.approx(0.245, abs=5e-4)


def test_lapes_own_masks_are_read_with_their_languages(shared):
    found = read_subnetworks(shared / "masks/LLaMA-2-7B.neuron.pth", "en,zh,fr,es,vie-Latn,ind-Latn,ja")
    assert [len(pairs) for pairs in found.neurons.values()] == [95, 583, 1022, 838, 836, 1068, 582]


def test_released_masks_need_their_languages_and_the_right_number(tmp_path):
    torch.save([[torch.tensor([2, 1])], [torch.tensor([], dtype=torch.int64)]], tmp_path / "masks.pt")
    assert read_subnetworks(tmp_path / "masks.pt", "mt,af").of(find_language("mt")).pairs.tolist() == [[0, 1], [0, 2]]
    with pytest.raises(UserError, match="does not say its languages"):
        read_subnetworks(tmp_path / "masks.pt")
    with pytest.raises(UserError, match="masks of 2 languages, but --languages names 1"):
        read_subnetworks(tmp_path / "masks.pt", "mt")
    (tmp_path / "masks.pt").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="is not a list of languages"):
        read_released_masks(tmp_path / "masks.pt", [find_language("mt")])


def test_a_subnetwork_file_says_everything_and_reads_back(tmp_path):
    neurons = {"cym-Latn": NeuronSet({0: torch.tensor([3]), 2: torch.tensor([1])}), "mlt-Latn": NeuronSet({})}
    written = Subnetworks(LLAMA, ["cym-Latn", "mlt-Latn"], neurons, 0.05, 0.95, 0.123, "abc")
    written.save(tmp_path / "s.safetensors")
    found = Subnetworks.load(tmp_path / "s.safetensors")
    assert (found.model, found.pool, found.rate, found.tau, found.atlas) == (LLAMA, written.pool, 0.05, 0.123, "abc")
    welsh = find_language("cy")
    assert found.of(welsh).identity == written.of(welsh).identity
    assert {layer: indices.tolist() for layer, indices in found.of(welsh).by_layer.items()} == {0: [3], 2: [1]}
    with pytest.raises(UserError, match="has no Georgian"):
        found.of(find_language("ka"))
    text = format_subnetworks(describe_subnetworks(found, LLAMA))
    assert re.search(r"Welsh \(cy\) +2 +24\.6k +0\.00 %", text)


def test_overlap_is_the_jaccard_index():
    one = NeuronSet({0: torch.tensor([1, 2]), 1: torch.tensor([0])})
    two = NeuronSet({0: torch.tensor([2]), 1: torch.tensor([0, 1])})
    assert one.overlap(two) == 0.5


def test_languages_carry_each_data_sets_code():
    estonian, chinese = find_language("Estonian"), find_language("zh")
    assert (estonian.glotcc, estonian.flores_200, estonian.flores_plus) == ("ekk-Latn", "est_Latn", "ekk_Latn")
    assert (chinese.glotcc, chinese.flores_200, chinese.flores_plus) == ("cmn-Hani", "zho_Hans", "cmn_Hans")
    assert find_language("mt").opus_100 == "en-mt"
    assert find_language("af").opus_100 == "af-en"
    with pytest.raises(UserError, match=r"belebele has no Welsh"):
        find_language("cy").code("belebele")
    assert find_language("gla-Latn").script == "Latn"
    assert len(known_languages()) >= 204
