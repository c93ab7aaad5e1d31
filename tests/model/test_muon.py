import pytest
import torch
from tinywan.muon import Muon, orthogonalise
from torch import Tensor, nn

SMALLEST, LARGEST = 0.65, 1.25  # five Newton-Schulz steps do not reach 1, by design


def matrix(rows: int, columns: int, condition: float) -> Tensor:
    """Random directions, singular values spread over a factor of `condition`."""
    u, _, vt = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), min(rows, columns))
    return u * values @ vt


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_singular_values_come_near_one_whatever_the_scale(shape, scale):
    values = torch.linalg.svdvals(orthogonalise(scale * matrix(*shape, condition=30)))
    assert SMALLEST < values.min()
    assert values.max() < LARGEST


def test_the_directions_stay():
    given = matrix(24, 40, condition=10)
    u, _, vt = torch.linalg.svd(given, full_matrices=False)
    in_their_basis = u.T @ orthogonalise(given) @ vt.T
    off_diagonal = in_their_basis - in_their_basis.diagonal().diag()
    assert off_diagonal.abs().max() < 1e-4
    assert in_their_basis.diagonal().min() > SMALLEST


def test_a_stack_of_matrices_equals_one_by_one():
    stack = torch.randn(5, 12, 20)
    alone = torch.stack([orthogonalise(one) for one in stack])
    torch.testing.assert_close(orthogonalise(stack), alone, atol=1e-5, rtol=0)


def test_half_precision_keeps_the_directions_about():
    given = matrix(24, 40, condition=10)
    found, exact = orthogonalise(given, bfloat16=True), orthogonalise(given)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert (found - exact).norm() < 0.06 * exact.norm()


def test_the_optimiser_works_in_half_precision_where_it_is_asked_to():
    updates = []
    given = matrix(24, 40, condition=10)
    for half in (False, True):
        param = nn.Parameter(torch.zeros(24, 40))
        param.grad = given.clone()
        Muon([param], lr=0.1, bfloat16=half).step()
        updates.append(param.detach())
    assert not torch.equal(*updates)
    assert (updates[0] - updates[1]).norm() < 0.06 * updates[0].norm()


def test_zero_stays_zero():
    assert torch.equal(orthogonalise(torch.zeros(4, 6)), torch.zeros(4, 6))


def steps(groups: list[list[nn.Parameter]], gradients: list[list[Tensor]]) -> None:
    """Three steps, each group with an optimiser of its own."""
    for params, given in zip(groups, gradients, strict=True):
        optimizer = Muon(params, lr=0.1, momentum=0.9, weight_decay=0.05)
        for scale in (1.0, -0.3, 2.0):
            for param, gradient in zip(params, given, strict=True):
                param.grad = scale * gradient
            optimizer.step()


def test_one_optimiser_for_all_equals_one_for_each():
    shapes = [(6, 4), (6, 4), (3, 8), (6, 4)]
    start = [torch.randn(shape) for shape in shapes]
    gradients = [torch.randn(shape) for shape in shapes]
    together = [nn.Parameter(value.clone()) for value in start]
    apart = [nn.Parameter(value.clone()) for value in start]
    steps([together], [gradients])
    steps([[param] for param in apart], [[gradient] for gradient in gradients])
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_first_update_is_lr_times_the_orthogonalised_gradient_times_sqrt_of_the_aspect():
    param = nn.Parameter(torch.zeros(16, 4))
    param.grad = torch.randn(16, 4)
    Muon([param], lr=0.1).step()
    expected = -0.1 * 2 * orthogonalise(param.grad)  # sqrt(16 / 4)
    torch.testing.assert_close(param.detach(), expected, atol=1e-5, rtol=0)


def test_weight_decay_shrinks_what_is_there():
    param = nn.Parameter(torch.ones(3, 3))
    param.grad = torch.zeros(3, 3)
    Muon([param], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(param.detach(), torch.full((3, 3), 0.95))


def test_a_parameter_without_gradient_is_left_alone():
    param = nn.Parameter(torch.ones(3, 3))
    Muon([param], weight_decay=0.5).step()
    assert torch.equal(param.detach(), torch.ones(3, 3))


def test_it_finds_the_bottom_of_a_quadratic():
    target, param = torch.randn(8, 8), nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([param], lr=0.05)
    errors = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        optimizer.zero_grad()
        error = (param - target).square().mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.01 * errors[0]
