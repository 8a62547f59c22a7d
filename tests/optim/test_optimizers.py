"""The geometry that the optimizers promise, and the behaviour that users of torch optimizers rely on."""

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn

from hyperp.optim import SSO, AdamW, GroupedOptimizer, Muon, MuonH, batch
from tests.optim.optimizers import CLASSES, gaussian, gradients, run
from tests.paths import ROOT

torch.set_num_threads(1)

SPHERES = ["sso", "muonsphere", "muonh", "adamh"]


# Geometry.


@pytest.mark.parametrize("name", ["muonh", "adamh"])
def test_frobenius_norms_never_change(name: str):
    parameter = nn.Parameter(gaussian(12, 8).float())
    norm = parameter.norm().item()
    optimizer = CLASSES[name]([parameter], lr=0.3)
    for i in range(30):
        run(optimizer, [parameter], [[gaussian(12, 8, seed=i)]])
        assert parameter.norm().item() == pytest.approx(norm, rel=1e-5)


def test_sso_holds_the_spectral_norm_to_second_order_and_muonsphere_does_not():
    off = {}
    for name in ("sso", "muonsphere"):
        parameter = nn.Parameter(gaussian(16, 16).float())
        optimizer = CLASSES[name]([parameter], lr=0.01, momentum=0.0)
        optimizer.project_()
        drift = []
        for i in range(20):
            top = torch.linalg.svd(parameter.detach(), full_matrices=False)
            # A gradient along the top pair, which changes the norm.
            pull = 10 * torch.outer(top.U[:, 0], top.Vh[0]).double()
            run(optimizer, [parameter], [[gaussian(16, 16, seed=i) + pull]])
            drift.append(abs(torch.linalg.matrix_norm(parameter.detach(), ord=2).item() - 1))
        off[name] = max(drift)
    assert off["sso"] < 2e-3 < 8e-3 < off["muonsphere"]


@pytest.mark.parametrize("name", ["sso", "muonsphere", "muonh", "adamh", "muon"])
def test_trajectories_do_not_depend_on_the_scale_of_the_loss(name: str):
    results = []
    for scale in (1.0, 64.0):
        parameter = nn.Parameter(gaussian(6, 5))
        options = {"eps": 1e-30} if name == "adamh" else {}
        grads = [[scale * g for g in gradients((6, 5), seed=3)]]
        run(CLASSES[name]([parameter], lr=0.05, **options), [parameter], grads)
        results.append(parameter.detach().clone())
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["sso", "muonsphere", "muonh", "muon"])
def test_rotations_of_the_problem_rotate_the_trajectory(name: str):
    Q, P = torch.linalg.qr(gaussian(6, 6, seed=1)).Q, torch.linalg.qr(gaussian(5, 5, seed=2)).Q
    grads = gradients((6, 5), seed=3)
    plain, turned = nn.Parameter(gaussian(6, 5)), nn.Parameter(Q @ gaussian(6, 5) @ P)
    run(CLASSES[name]([plain], lr=0.05), [plain], [grads])
    run(CLASSES[name]([turned], lr=0.05), [turned], [[Q @ g @ P for g in grads]])
    torch.testing.assert_close(turned.data, Q @ plain.data @ P, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CLASSES)
def test_experts_are_matrices_of_their_own(name: str):
    stack = nn.Parameter(gaussian(3, 6, 4) * torch.tensor([0.1, 1.0, 10.0])[:, None, None])
    single = [nn.Parameter(stack[i].detach().clone()) for i in range(3)]
    grads = gradients((3, 6, 4), seed=1)
    run(CLASSES[name]([stack], lr=0.05), [stack], [grads])
    for i, parameter in enumerate(single):
        run(CLASSES[name]([parameter], lr=0.05), [parameter], [[g[i] for g in grads]])
        torch.testing.assert_close(stack.data[i], parameter.data, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CLASSES)
def test_batching_changes_nothing(name: str):
    together = [nn.Parameter(gaussian(6, 4, seed=i)) for i in range(3)]
    alone = copy.deepcopy(together)
    grads = [gradients((6, 4), seed=i) for i in range(3)]
    run(CLASSES[name](together, lr=0.05), together, grads)
    for i in range(3):
        run(CLASSES[name]([alone[i]], lr=0.05), [alone[i]], [grads[i]])
        torch.testing.assert_close(together[i].data, alone[i].data, rtol=1e-9, atol=1e-9)


# Projection.


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("name", ["sso", "muonsphere"])
def test_projection_puts_matrices_on_the_spectral_sphere(name: str, factor: float):
    tall, stack, vector = (
        nn.Parameter(gaussian(8, 2)),
        nn.Parameter(gaussian(3, 4, 4)),
        nn.Parameter(gaussian(5)),
    )
    before = vector.detach().clone()
    optimizer = CLASSES[name]([tall, stack, vector], lr=0.1, radius_factor=factor)
    optimizer.project_()
    assert torch.linalg.matrix_norm(tall.detach(), ord=2).item() == pytest.approx(2 * factor, rel=1e-9)
    torch.testing.assert_close(
        torch.linalg.matrix_norm(stack.detach(), ord=2), torch.full((3,), factor).double()
    )
    assert torch.equal(vector.detach(), before)


@pytest.mark.parametrize("name", ["muonh", "adamh"])
def test_the_norm_at_projection_is_the_radius(name: str):
    parameter = nn.Parameter(gaussian(6, 4))
    before = parameter.detach().clone()
    optimizer = CLASSES[name]([parameter], lr=0.1)
    optimizer.project_()
    assert torch.equal(parameter.detach(), before)
    parameter.data.mul_(3)
    run(optimizer, [parameter], [gradients((6, 4), seed=1)])
    assert parameter.norm().item() == pytest.approx(before.norm().item(), rel=1e-9)


def test_projection_of_frozen_matrices_is_left_out():
    parameter = nn.Parameter(gaussian(6, 4), requires_grad=False)
    before = parameter.detach().clone()
    SSO([parameter], lr=0.1).project_()
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("name", SPHERES)
@pytest.mark.parametrize("when", ["project_", "step"])
@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_matrix_without_a_place_on_a_sphere_is_named(name: str, when: str, value: float):
    model = nn.ModuleDict({"good": nn.Linear(3, 3, bias=False), "bad": nn.Linear(3, 3, bias=False)})
    bad = model.get_submodule("bad").weight
    bad.data.fill_(value)  # pyright: ignore[reportCallIssue]
    optimizer = CLASSES[name](model, lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match=r"bad\.weight must .* to be held on a sphere"):
        getattr(optimizer, when)()


# Gradients that are missing, zero or not finite.


@pytest.mark.parametrize("name", CLASSES)
def test_parameters_without_gradient_are_passed_over(name: str):
    parameters = [nn.Parameter(gaussian(4, 3)), nn.Parameter(gaussian(4, 3, seed=1))]
    before = parameters[1].detach().clone()
    optimizer = CLASSES[name](parameters, lr=0.1)
    parameters[0].grad = gaussian(4, 3, seed=2)
    optimizer.step()
    assert torch.equal(parameters[1], before)
    assert parameters[1] not in optimizer.state


@pytest.mark.parametrize("name", CLASSES)
def test_a_zero_gradient_moves_nothing_but_the_retraction(name: str):
    parameter = nn.Parameter(gaussian(6, 4))
    optimizer = CLASSES[name]([parameter], lr=0.1)
    optimizer.project_()
    before = parameter.detach().clone()
    run(optimizer, [parameter], [[torch.zeros(6, 4)] * 3])
    torch.testing.assert_close(parameter.data, before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", CLASSES)
def test_a_gradient_that_is_not_finite_skips_its_matrix_alone(name: str, bad: float):
    def trajectory(poison: bool) -> tuple[list[Tensor], GroupedOptimizer]:
        parameters = [nn.Parameter(gaussian(5, 4, seed=i)) for i in range(2)] + [
            nn.Parameter(gaussian(3, 5, 4))
        ]
        optimizer = CLASSES[name](parameters, lr=0.05)
        for step in range(3):
            for i, parameter in enumerate(parameters):
                parameter.grad = gaussian(*parameter.shape, seed=10 * step + i)
            if poison and step == 1:
                snapshot = [parameters[0].detach().clone(), copy.deepcopy(optimizer.state[parameters[0]])]
                parameters[0].grad[1, 1] = bad  # pyright: ignore[reportOptionalSubscript]
                parameters[2].grad[2, 0, 0] = bad  # pyright: ignore[reportOptionalSubscript]
                optimizer.step()
                assert torch.equal(parameters[0].detach(), snapshot[0])
                for key, value in optimizer.state[parameters[0]].items():
                    assert key == "skipped" or torch.equal(value, snapshot[1][key])
            else:
                optimizer.step()
        return [p.detach().clone() for p in parameters], optimizer

    (clean, _), (hurt, optimizer) = trajectory(False), trajectory(True)
    assert optimizer.skipped == 2
    assert all(t.isfinite().all() for t in hurt)
    torch.testing.assert_close(hurt[1], clean[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(hurt[2][:2], clean[2][:2], rtol=1e-9, atol=1e-9)
    assert not torch.equal(hurt[2][2], clean[2][2])


@pytest.mark.parametrize("name", ["sso", "muonsphere", "muonh", "muon"])
def test_a_gradient_that_is_not_finite_does_not_reach_an_svd_that_would_refuse_it(name: str):
    parameters = [nn.Parameter(gaussian(5, 4, seed=i)) for i in range(2)]
    optimizer = CLASSES[name](parameters, lr=0.05, msign="svd")
    grads = [gradients((5, 4), seed=i) for i in range(2)]
    grads[0][2][:] = math.nan
    run(optimizer, parameters, grads)
    assert optimizer.skipped == 1
    assert parameters[0].isfinite().all()


# What a torch optimizer does.


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def train(model: nn.Module, optimizer: GroupedOptimizer, steps: range) -> None:
    for step in steps:
        x = gaussian(16, 6, seed=step).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        (model(x) - x[:, :2].square()).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CLASSES)
def test_a_restored_run_is_the_same_to_the_bit(name: str, dtype: torch.dtype):
    through, model = small_model().to(dtype), small_model().to(dtype)
    whole = CLASSES[name](through, lr=0.02)
    whole.project_()
    train(through, whole, range(6))

    first = CLASSES[name](model, lr=0.02)
    first.project_()
    train(model, first, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = small_model().to(dtype)
    resumed.load_state_dict(saved["model"])
    second = CLASSES[name](resumed, lr=0.5)
    second.load_state_dict(saved["optimizer"])
    second.project_()
    train(resumed, second, range(3, 6))
    for a, b in zip(through.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    momenta = [
        value for state in second.state.values() for value in state.values() if value.is_floating_point()
    ]
    assert all(value.dtype == torch.float32 for value in momenta)


@pytest.mark.parametrize("name", CLASSES)
def test_every_optimizer_learns(name: str):
    model = small_model()
    optimizer = CLASSES[name](model, lr=0.02)
    optimizer.project_()
    x = gaussian(64, 6, seed=0).float()

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (model(x) - x[:, :2].square()).square().mean()
        value.backward()
        return value

    losses = [optimizer.step(loss).item() for _ in range(150)]
    assert losses[-1] < 0.6 * losses[0]


def test_named_parameters_groups_and_later_groups_are_taken():
    a, b, c = (nn.Parameter(gaussian(4, 3, seed=i)) for i in range(3))
    optimizer = SSO([{"params": [("a", a)], "lr": 0.3}, {"params": [("b", b)], "algorithm": "adamw"}], lr=0.1)
    optimizer.add_param_group({"params": [("c", c)], "algorithm": "muon", "weight_decay": 0.1})
    assert [g["algorithm"] for g in optimizer.param_groups] == ["sso", "adamw", "muon"]
    assert [g["lr"] for g in optimizer.param_groups] == [0.3, 0.1, 0.1]
    run(optimizer, [a, b, c], [gradients((4, 3), seed=i) for i in range(3)])
    alone = nn.Parameter(gaussian(4, 3, seed=2))
    run(Muon([alone], lr=0.1, weight_decay=0.1), [alone], [gradients((4, 3), seed=2)])
    torch.testing.assert_close(c.data, alone.data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CLASSES)
def test_maximize_climbs(name: str):
    up, down = nn.Parameter(gaussian(4, 3)), nn.Parameter(gaussian(4, 3))
    grads = gradients((4, 3), seed=1)
    run(CLASSES[name]([up], lr=0.1, maximize=True), [up], [grads])
    run(CLASSES[name]([down], lr=0.1), [down], [[-g for g in grads]])
    torch.testing.assert_close(up.data, down.data, rtol=1e-12, atol=1e-12)


def test_schedulers_drive_the_rate():
    parameter = nn.Parameter(gaussian(4, 3))
    optimizer = MuonH([parameter], lr=0.4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    run(optimizer, [parameter], [gradients((4, 3), seed=1)[:1]])
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    before = parameter.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    run(optimizer, [parameter], [gradients((4, 3), seed=2)])
    torch.testing.assert_close(parameter.data, before, rtol=1e-12, atol=1e-12)


def test_a_copy_goes_its_own_way():
    parameter = nn.Parameter(gaussian(4, 3))
    optimizer = SSO([parameter], lr=0.1, options={"adamw": {"weight_decay": 0.5}})
    twin = copy.deepcopy(optimizer)
    twin.add_param_group({"params": [nn.Parameter(gaussian(3))]})
    assert twin.param_groups[-1]["weight_decay"] == 0.5
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", CLASSES)
def test_low_precision_parameters_are_updated_in_float32(name: str):
    start = gaussian(8, 8).bfloat16()
    low, high = nn.Parameter(start.clone()), nn.Parameter(start.float())
    for parameter in (low, high):
        grads = [g.bfloat16() for g in gradients((8, 8), seed=1)]
        run(CLASSES[name]([parameter], lr=0.05), [parameter], [grads[:1]])
    assert torch.equal(low, high.bfloat16())


def test_empty_and_scalar_parameters_are_no_trouble():
    scalar, empty = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(0, 3))
    scalar.grad, empty.grad = torch.tensor(2.0), torch.zeros(0, 3)
    AdamW([scalar, empty], lr=0.1).step()
    assert scalar.item() == pytest.approx(0.9)


def test_the_loop_of_the_user_page_runs():
    page = (ROOT / "hyperp" / "optim" / "README.md").read_text()
    for block in page.split("```python\n")[1:]:
        namespace: dict = {"nn": nn}
        exec(block.split("```")[0], namespace)
        if "optimizer" in namespace:
            assert namespace["optimizer"].state
            on_sphere = torch.linalg.matrix_norm(namespace["model"][1].weight.detach(), ord=2).item()
            assert on_sphere == pytest.approx(1, abs=0.01)


def test_an_idle_expert_is_not_carried_away_by_its_old_momentum():
    for name in ("sso", "muonsphere", "muonh", "adamh"):
        experts = nn.Parameter(gaussian(3, 6, 5))
        optimizer = GroupedOptimizer([experts], lr=0.05, algorithm=name)
        optimizer.project_()
        experts.grad = gaussian(3, 6, 5, seed=1)
        optimizer.step()
        before = experts.detach().clone()
        experts.grad[1] = 0
        for _ in range(5):
            optimizer.step()
        assert torch.equal(experts[1], before[1])
        assert not torch.equal(experts[0], before[0])
        assert optimizer.skipped == 0


@pytest.mark.parametrize("name", ["adamw", "muonh", "sso"])
def test_a_gradient_whose_square_overflows_is_skipped(name: str):
    one, other = nn.Parameter(gaussian(4, 4)), nn.Parameter(gaussian(4, 4, seed=1))
    optimizer = GroupedOptimizer([one, other], lr=0.1, algorithm=name)
    before = one.detach().clone()
    one.grad, other.grad = 1e200 * gaussian(4, 4, seed=2), gaussian(4, 4, seed=3)
    optimizer.step()
    assert torch.equal(one, before)
    assert optimizer.skipped == 1
    one.grad = gaussian(4, 4, seed=4)
    for _ in range(3):
        optimizer.step()
    assert one.isfinite().all()
    assert not torch.equal(one, before)


def test_large_batches_are_done_in_parts_that_change_nothing(monkeypatch):
    weights = {}
    for limit in (2**20, 70):
        monkeypatch.setitem(batch.LARGEST_BATCH, "cpu", limit)
        parameters = [nn.Parameter(gaussian(8, 4, seed=i)) for i in range(5)]
        parameters += [nn.Parameter(gaussian(5, 8, 4, seed=9)), nn.Parameter(gaussian(8, 4, seed=10))]
        optimizer = SSO(parameters, lr=0.05)
        for step in range(3):
            for i, p in enumerate(parameters):
                p.grad = gaussian(*p.shape, seed=100 * step + i)
            optimizer.step()
        weights[limit] = [p.detach() for p in parameters]
    torch.testing.assert_close(weights[70], weights[2**20], rtol=1e-4, atol=1e-6)


def test_what_would_be_lost_in_silence_is_refused():
    matrix, vector = nn.Parameter(gaussian(4, 4)), nn.Parameter(gaussian(4))
    with pytest.raises(ValueError, match=r"options\.adamw must not have lr"):
        SSO([matrix], options={"adamw": {"lr": 1e-3}})
    with pytest.raises(TypeError, match="params must be ordered"):
        SSO({matrix, vector})
    optimizer = SSO([matrix, vector], lr=0.1)
    with pytest.raises(ValueError, match=r"group 0 .* sso, got muonh"):
        optimizer.load_state_dict(GroupedOptimizer([matrix, vector], algorithm="muonh").state_dict())
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": [nn.Parameter(gaussian(2, 2)), vector]})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


def test_a_split_is_of_the_matrices_of_a_group():
    matrix, vector = nn.Parameter(gaussian(4, 4)), nn.Parameter(gaussian(4))
    optimizer = SSO([{"params": [matrix, vector], "split": (((0, 2),), ((2, 4),))}], lr=0.1)
    assert [group["split"] for group in optimizer.param_groups] == [(((0, 2),), ((2, 4),)), None]


def test_a_decay_near_one_is_corrected_without_rounding():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = AdamW([parameter], lr=0.1, betas=(0.9, 0.9999), eps=1e-12)
    parameter.grad = torch.full((3,), 0.3)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.9), rtol=1e-6, atol=0)
