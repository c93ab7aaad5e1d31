import math
from collections.abc import Iterator

import pytest
import torch
from tinywan.moe import FeedForward, MixtureOfExperts
from torch import Tensor, nn

DIM, HIDDEN, EXPERTS, TOP_K = 12, 20, 6, 3
BATCH, TOKENS = 2, 15
TOLERANCE = 1e-6


@pytest.fixture
def moe() -> MixtureOfExperts:
    return MixtureOfExperts(DIM, HIDDEN, EXPERTS, TOP_K).eval()


@pytest.fixture(params=["to train", "to draw"])
def purpose(request: pytest.FixtureRequest) -> Iterator[str]:
    """The answers are put together in one way where gradients are wanted, in another where not."""
    with torch.set_grad_enabled(request.param == "to train"):
        yield request.param


@pytest.fixture
def x() -> Tensor:
    return torch.randn(BATCH, TOKENS, DIM)


def count_rows(moe: MixtureOfExperts) -> dict[int, list[int]]:
    """Fills with the number of tokens of every call of every expert."""
    calls: dict[int, list[int]] = {index: [] for index in range(moe.num_experts)}
    for index, expert in enumerate(moe.experts):
        expert.register_forward_pre_hook(
            lambda module, args, index=index: calls[index].append(len(args[0]))
        )
    return calls


def send_to(moe: MixtureOfExperts, logits: Tensor) -> None:
    """Let the router answer [b l expert] `logits`, whatever it is asked."""
    moe.router_logits.register_forward_hook(lambda module, args, output: logits)


@pytest.mark.usefixtures("purpose")
def test_it_equals_a_loop_over_tokens_and_their_best_experts(moe, x):
    expected = torch.zeros_like(x)
    for b in range(BATCH):
        for token in range(TOKENS):
            logits = (moe.router.weight @ x[b, token]).tolist()
            best = sorted(range(EXPERTS), key=lambda i, logits=logits: -logits[i])[:TOP_K]
            total = sum(math.exp(logits[i]) for i in best)
            for i in best:
                share = math.exp(logits[i]) / total
                expected[b, token] += share * moe.experts[i](x[b, token])
    torch.testing.assert_close(moe(x), expected, atol=TOLERANCE, rtol=0)


def test_half_precision_on_a_cpu_sees_few_lengths_and_answers_the_same(moe, x):
    exact = moe(x)
    calls = count_rows(moe)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = moe(x)
    lengths = {length for lengths in calls.values() for length in lengths}
    assert lengths == {128}  # 15 to 90 real rows in each
    torch.testing.assert_close(rounded.float(), exact, atol=0.02, rtol=0.05)


def test_in_bfloat16_it_draws_what_it_draws_in_float32_but_for_rounding(moe, x):
    with torch.no_grad():
        exact = moe(x)
        rounded = moe.bfloat16()(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


def test_rows_that_fill_a_slice_have_no_part_in_the_gradient(moe, x):
    def gradient() -> Tensor:
        moe.zero_grad()
        moe(x).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in moe.experts.parameters() if p.grad is not None])

    exact = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradient()
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_its_gradients_equal_those_of_computing_every_expert(moe, x):
    def gradients(y: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(y.square().sum(), list(moe.parameters())))

    found = gradients(moe(x))
    logits = moe.router(x)
    kept = logits.masked_fill(logits < logits.topk(TOP_K).values[..., -1:], -math.inf)
    answers = torch.stack([expert(x) for expert in moe.experts], dim=-1)
    expected = gradients((answers * kept.softmax(-1)[:, :, None]).sum(-1))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=10 * TOLERANCE, rtol=1e-5)


def test_one_product_of_all_experts_equals_one_for_each_but_for_rounding():
    torch.manual_seed(0)
    moe = MixtureOfExperts(24, 16, 5, 2)
    found = []
    for tokens in (1, 3, 50):  # fewer than experts: some have nothing to do
        x = torch.randn(tokens, 24)
        logits = moe.router(x).detach()
        ids = logits.topk(2).indices
        weights = logits.gather(-1, ids).softmax(-1)
        for mix in (moe._mix_whole, moe._mix_grouped):
            moe.zero_grad()
            own = x.clone().requires_grad_()
            answer = mix(own, ids, weights)
            (answer.float() * torch.arange(24)).sum().backward()
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in moe.parameters()]
            found.append(torch.cat([t.flatten().float() for t in (answer, own.grad, *grads)]))
        exact, rounded = found[-2:]
        assert (exact - rounded).norm() < 0.01 * exact.norm()
        assert not torch.equal(exact, rounded)


@pytest.mark.parametrize(("hidden", "alone"), [(44, True), (48, False)])
def test_widths_that_one_product_of_all_experts_cannot_take_are_trained_one_by_one(
    hidden, alone, monkeypatch
):
    monkeypatch.setattr("tinywan.moe._in_bfloat16", lambda device: True)  # as on a GPU
    moe = MixtureOfExperts(32, hidden, 5, 2).train()
    calls = count_rows(moe)
    moe(torch.randn(1, TOKENS, 32)).square().sum().backward()
    assert moe.router.weight.grad.isfinite().all()
    assert any(calls.values()) is alone


@pytest.mark.usefixtures("purpose")
def test_only_the_chosen_experts_are_computed(moe, x):
    calls = count_rows(moe)
    ids = []
    moe.expert_ids.register_forward_hook(lambda module, args, output: ids.append(output))
    moe(x)
    assert ids[0].shape == (BATCH, TOKENS, TOP_K)
    assert ids[0].dtype == torch.int64
    chosen = ids[0].flatten().bincount(minlength=EXPERTS).tolist()
    assert {index: sum(rows) for index, rows in calls.items()} == dict(enumerate(chosen))
    assert sum(chosen) == BATCH * TOKENS * TOP_K
    assert all(len(rows) <= 1 for rows in calls.values())  # one call per expert, no loop


@pytest.mark.usefixtures("purpose")
def test_an_expert_that_nobody_chose_is_not_called(moe, x):
    calls = count_rows(moe)
    logits = torch.zeros(BATCH, TOKENS, EXPERTS)
    logits[..., [1, 2, 4]] = 5
    send_to(moe, logits)
    moe(x)
    assert {index for index, rows in calls.items() if rows} == {1, 2, 4}


@pytest.mark.usefixtures("purpose")
def test_expert_ids_replaced_by_a_hook_are_used(moe, x):
    moe.expert_ids.register_forward_hook(lambda module, args, output: torch.full_like(output, 5))
    torch.testing.assert_close(moe(x), moe.experts[5](x), atol=TOLERANCE, rtol=0)


@pytest.mark.usefixtures("purpose")
def test_the_out_tap_sees_the_result(moe, x):
    seen = []
    moe.out.register_forward_hook(lambda module, args, output: seen.append(output))
    assert torch.equal(moe(x), seen[0])


def test_balance_is_one_when_all_experts_work_equally_and_the_router_is_undecided():
    moe = MixtureOfExperts(DIM, HIDDEN, EXPERTS, 1).train()
    send_to(moe, 1e-6 * torch.eye(EXPERTS)[None])  # each token its own expert, hardly preferred
    moe(torch.randn(1, EXPERTS, DIM))
    assert moe.losses.balance.item() == pytest.approx(1, abs=1e-5)


def test_balance_is_the_number_of_experts_when_one_does_everything():
    moe = MixtureOfExperts(DIM, HIDDEN, EXPERTS, 1).train()
    send_to(moe, 100 * torch.eye(EXPERTS)[[2] * TOKENS][None])
    moe(torch.randn(1, TOKENS, DIM))
    assert moe.losses.balance.item() == pytest.approx(EXPERTS, abs=1e-5)


def test_z_loss_is_the_squared_log_partition():
    moe = MixtureOfExperts(DIM, HIDDEN, EXPERTS, TOP_K).train()
    send_to(moe, torch.full((1, TOKENS, EXPERTS), 2.5))
    moe(torch.randn(1, TOKENS, DIM))
    assert moe.losses.z.item() == pytest.approx((2.5 + math.log(EXPERTS)) ** 2, rel=1e-5)


def test_balance_loss_turns_the_router_away_from_the_busy_expert():
    moe = MixtureOfExperts(DIM, HIDDEN, EXPERTS, 1).train()
    nn.init.zeros_(moe.router.weight)
    moe.router.weight.data[2] = 0.1
    x = torch.ones(1, TOKENS, DIM)
    moe(x)
    moe.losses.balance.backward()
    assert (moe.router.weight.grad[2] > 0).all()  # descending lowers its logit


def test_losses_are_kept_in_training_alone(moe, x):
    moe(x)
    assert moe.losses is None


def test_ten_experts_of_which_three_work_cost_as_much_as_one_dense_layer():
    dim = 192
    moe, dense = MixtureOfExperts(dim, 256, 10, 3), FeedForward(dim, 4 * dim)

    def macs(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.ndim == 2)

    assert 3 * macs(moe.experts[0]) == macs(dense)
