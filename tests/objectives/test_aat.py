import pytest
import torch
from hand_made import cross_entropy, hand_made_model, images

from robustfast.attacks import AttackConfig
from robustfast.errors import UserError
from robustfast.objectives import AAT, AATPP

ATTACK = AttackConfig(eps=0.1, step_size=0.05, steps=2)
ALL = ("st", "as", "ar", "an")

# Logits of the hand-made model are the pixels times 2 (r), 3 (n) and 5 (s): every way predicts the brighter pixel.
CLEAN = ((0.1, 0.9), (0.8, 0.2), (0.4, 0.6))
LABELS = (1, 0, 1)
X_S = ((0.7, 0.4), (0.6, 0.5), (0.9, 0.2))  # fools the standard way on samples 0 and 2
X_R = ((0.6, 0.5), (0.4, 0.5), (0.3, 0.8))
X_N = ((0.2, 0.3), (0.1, 0.7), (0.3, 0.4))  # fools the non-robust way on sample 1


def hand_made_phase(terms, x_s=X_S, x_r=X_R, x_n=X_N):
    model = hand_made_model(robust=2.0, non_robust=3.0)
    objective = AAT(model, AAT.Config(terms=terms), ATTACK, seed=0)
    made = {"s": images(*x_s), "r": images(*x_r), "n": images(*x_n)}
    if objective.attack is not None:
        ways = objective.attack.ways
        objective.attack = lambda *_, **__: {way: made[way] for way in ways}
    (phase,) = objective.phases(images(*CLEAN), torch.tensor(LABELS), torch.arange(3))
    return model, phase


def mean(factor, pixels, labels):
    """Sum over the samples that have a label, divided by the full batch."""
    losses = [cross_entropy(factor, p, y) for p, y in zip(pixels, labels, strict=True) if y is not None]
    return sum(losses) / len(pixels)


BY_HAND = {
    "st_s": mean(5.0, CLEAN, LABELS),
    "st_r": mean(2.0, CLEAN, LABELS),
    "st_n": mean(3.0, CLEAN, LABELS),
    "as_r": mean(2.0, X_S, (1, None, 1)),  # the true label
    "as_n": mean(3.0, X_S, (0, None, 0)),  # the label the standard way was fooled into
    "ar": mean(2.0, X_R, LABELS),
    "an": mean(3.0, X_N, (None, 1, None)),
}
OF_TERM = {"st": ("st_s", "st_r", "st_n"), "as": ("as_r", "as_n"), "ar": ("ar",), "an": ("an",)}


@pytest.mark.parametrize(
    "terms", [("st",), ("st", "as"), ("st", "ar"), ("st", "an"), ALL, ("an",), ("an", "as")]
)
def test_losses_by_hand_for_every_row_of_the_ablation(terms):
    _, phase = hand_made_phase(terms)
    expected = {name: BY_HAND[name] for term in ALL if term in terms for name in OF_TERM[term]}
    assert list(phase.terms) == list(expected)
    for name, value in expected.items():
        assert phase.terms[name].item() == pytest.approx(value, rel=1e-12), name
    assert phase.loss.item() == pytest.approx(sum(expected.values()), rel=1e-12)


def test_defaults_are_the_papers_aat_and_aatpp():
    assert AAT.Config().terms == ("st", "as")
    assert AATPP.Config().terms == ALL


def test_an_attack_that_fools_no_one_gives_exactly_zero_loss_and_gradient():
    model, phase = hand_made_phase(("as", "an"), x_s=CLEAN, x_n=CLEAN)
    assert phase.loss.item() == 0.0
    assert all(value.item() == 0.0 for value in phase.terms.values())
    phase.loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is None or not parameter.grad.any()


# Which encoders each term trains; the head takes part in all.
ROUTES = {
    "st_s": "rn",
    "st_r": "r",
    "st_n": "n",
    "as_r": "r",
    "as_n": "n",
    "ar": "r",
    "an": "n",
}


@pytest.mark.parametrize("name", ROUTES)
def test_each_term_trains_its_own_encoder_and_its_half_of_the_head(name, monkeypatch):
    # Single the term out by weighing the others with zero.
    import robustfast.objectives.aat as module

    whole = module.asymmetric_cross_entropy

    def only(logits, y, *, terms, **labels):
        values = whole(logits, y, terms=terms, **labels)
        return values * torch.tensor([float(term == name) for term in terms])

    monkeypatch.setattr(module, "asymmetric_cross_entropy", only)
    model, phase = hand_made_phase(ALL)
    phase.loss.backward()
    gradients = {encoder: getattr(model, f"encoder_{encoder}").factor.grad for encoder in "rn"}
    for encoder, gradient in gradients.items():
        assert bool(gradient.abs() > 1e-6) == (encoder in ROUTES[name]), encoder
    columns = dict(zip("rn", model.head[0].weight.grad.chunk(2, dim=1), strict=True))
    for encoder, gradient in columns.items():
        assert bool(gradient.any()) == (encoder in ROUTES[name]), encoder


@pytest.mark.parametrize(
    ("terms", "ways"),
    [
        (("st",), None),
        (("st", "as"), "s"),
        (("ar",), "r"),
        (("st", "an"), "n"),
        (("an", "as"), "sn"),
        (ALL, "srn"),
    ],
)
def test_only_the_ways_that_the_terms_need_are_attacked(terms, ways, digits_model):
    objective = AAT(digits_model, AAT.Config(terms=terms), ATTACK, seed=0)
    assert (objective.attack.ways if objective.attack else None) == ways


def test_labels_are_those_of_the_eval_mode_network_the_attack_saw(digits_model, batch):
    x, y, index = batch
    digits_model.train()
    # Running statistics far from the batch's own, so that the two modes predict differently.
    for name, buffer in digits_model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    objective = AATPP(digits_model, AATPP.Config(), ATTACK, seed=0)
    x_adv = objective.attack(x, y, index, **objective.now())
    labels = objective.labels(x_adv)
    in_train = {way: digits_model.way(way)(x_adv[way]).argmax(1) for way in "sn"}
    digits_model.eval()
    in_eval = {way: digits_model.way(way)(x_adv[way]).argmax(1) for way in "sn"}
    assert list(labels) == ["s", "n"]
    for way in "sn":
        assert torch.equal(labels[way], in_eval[way])
    assert any(not torch.equal(labels[way], in_train[way]) for way in "sn")


def test_terms_may_come_as_one_word_with_commas():
    assert AAT.Config(terms=("st,as,ar",)).terms == ("st", "as", "ar")
    assert AATPP.Config(terms=("st,an",)).terms == ("st", "an")


@pytest.mark.parametrize("terms", [(), ("",), ("ax",), ("st", "st"), ("st,",), ("st as",)])
def test_bad_terms_are_refused_in_one_line(terms):
    with pytest.raises(UserError, match=r"expected one or more of st, as, ar, an, each once$"):
        AAT.Config(terms=terms)
