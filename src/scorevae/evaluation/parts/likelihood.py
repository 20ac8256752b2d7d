"""The bound on ln p(x) with z and of the prior alone; the prior's likelihood by the ODE."""

from collections.abc import Mapping

import matplotlib.pyplot as plt

from scorevae.autoencoders.table import DRAWING, MODEL, SYSTEMS
from scorevae.data.arrays import to_tensor
from scorevae.evaluation.bound import Bound, likelihood_bound
from scorevae.evaluation.figures import Figure
from scorevae.evaluation.ode import ode_log_likelihood
from scorevae.evaluation.part import Caption, Columns, Found, Numbers, Part, Subject
from scorevae.evaluation.report.page import Value
from scorevae.evaluation.report.tables import Metric, Rows

ODE_TOLERANCE = 1e-3  # of RK45; off by 0.02 bits on digits, below the error over images
PRIOR = "prior"


def compute(subject: Subject) -> Found:
    """All bounds from the same times and noise, then the ODE on fewer images."""
    settings, model, seed = subject.config.evaluate.likelihood, subject.model, subject.config.seed
    x_0 = to_tensor(subject.test.images[: settings.images]).to(model.device)
    batch = subject.config.reconstruct.batch
    found = {
        name: likelihood_bound(
            x_0,
            sde=system.sde,
            posterior=system.posterior,
            repeats=settings.repeats,
            draws=settings.draws,
            batch=batch,
            seed=seed,
            share=subject.team.map,
        )
        for name, system in subject.drawing.items()
    }
    bounds = {n: both.posterior for n, both in found.items() if both.posterior is not None}
    prior = found[MODEL].prior
    numbers: Numbers = {name: _bits(bound) for name, bound in bounds.items()}
    numbers[PRIOR] = {k: v for k, v in _bits(prior).items() if k != "bits_rate"}
    if settings.ode_images > 0:
        ode = ode_log_likelihood(
            x_0[: subject.looked_at(settings.ode_images)],
            sde=model.sde,
            prior=model.posterior.prior,
            repeats=1,
            batch=batch,
            seed=seed,
            tolerance=ODE_TOLERANCE,
            share=subject.team.map,
        ).bits_per_dimension()
        numbers[PRIOR] |= {"ode_bits_per_dim": ode.mean, "ode_bits_per_dim_error": ode.image_error}
    curves = {PRIOR: prior, **bounds}
    columns = {"log_snr": prior.integrand.log_snr}
    columns |= {name: bound.integrand.mean for name, bound in curves.items()}
    table = zip(*(column.tolist() for column in columns.values()), strict=True)
    rows: Rows = [dict(zip(columns, row, strict=True)) for row in table]
    titles = {name: SYSTEMS[name].title if name in SYSTEMS else name for name in curves}
    figure = draw({titles[name]: bound for name, bound in curves.items()})
    return Found(numbers, {"integrand": rows}, {"integrand": figure})


def _bits(bound: Bound) -> dict[str, Value]:
    """``bits_per_dim`` with its two standard errors, and every term."""
    parts = bound.bits_per_dimension()
    total = parts.pop("total")
    numbers: dict[str, Value] = {
        "bits_per_dim": total.mean,
        "bits_per_dim_error": total.monte_carlo_error,
        "bits_per_dim_image_error": total.image_error,
    }
    return numbers | {f"bits_{name}": value.mean for name, value in parts.items()}


def draw(curves: Mapping[str, Bound]) -> Figure:
    """Bits that the diffusion term pays at each noise level, for the prior and with the latent.

    The area between the curves is what z saves there, to be held against its rate, which the
    legend names. Bands are two standard errors; right of the line networks are extrapolated.
    """
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, bound in curves.items():
        trained = bound.integrand.trained
        bits = bound.bits_per_dimension()
        label = f"{name}: area {bits['diffusion'].mean:.2f}, rate {bits['rate'].mean:.2f}"
        log_snr, mean, error, _ = bound.integrand
        (line,) = axis.plot(log_snr, mean, label=label)
        low, high = mean - 2 * error, mean + 2 * error
        axis.fill_between(log_snr, low, high, color=line.get_color(), alpha=0.3, lw=0)
    axis.axvline(trained, color="grey", linestyle=":", label="t_min")
    axis.set(
        title="where z helps: cost of the diffusion term",
        xlabel="ln-SNR (noise on the left, image on the right)",
        ylabel="bits per dimension and unit",
        ylim=(0, None),
    )
    axis.legend(fontsize=8)
    return figure


METRICS = {
    "bits_per_dim": Metric(
        "Bits per dimension", "the bound on −log₂ p(x), β = 1", "lower", headline=2
    ),
    "bits_per_dim_error": Metric("its standard error", "Monte Carlo: same images, other noise"),
    "bits_per_dim_image_error": Metric("its standard error over images", "other images, too"),
    "bits_reconstruction": Metric("reconstruction", "−E log₂ p(x₀|x_ε) of the 256 grey values"),
    "bits_prior_matching": Metric("prior matching", "KL(q(x₁|x₀) ‖ π)"),
    "bits_diffusion": Metric("diffusion", "½ ∫ g² E‖∇ln p(xₜ|x₀) − s‖² dt"),
    "bits_rate": Metric("rate", "KL(q(z|x₀) ‖ N(0, I))"),
    "bits_below_t_min": Metric("of the diffusion, below t_min", "where nothing was trained"),
    "bits_theorem_3": Metric("the bound by Song's theorem 3", "another estimator of the same"),
    "ode_bits_per_dim": Metric("Bits per dimension by the ODE", "the prior's own likelihood"),
    "ode_bits_per_dim_error": Metric("its standard error", "over images"),
}
INTEGRAND = ("log_snr", PRIOR, MODEL)

PART = Part(
    name="likelihood",
    title="Likelihood",
    text=(
        "A lower bound on ln p(x) of the test images, as bits per dimension (lower is better), "
        "with the terms that add up to it and the standard error of the estimate. β is 1 here, "
        "whatever β trained the encoder. The prior's own bound comes from the same estimator."
    ),
    compute=compute,
    settings="likelihood",
    metrics=METRICS,
    rows={
        **dict.fromkeys(DRAWING, tuple(n for n in METRICS if not n.startswith("ode"))),
        PRIOR: tuple(name for name in METRICS if name != "bits_rate"),
    },
    tables={"integrand": Columns(INTEGRAND)},
    figures={
        "integrand": Caption(
            "Where z helps: the cost of each noise level, for the prior and with z. The area "
            "between the curves is what z saves.",
            "Two curves over the log signal-to-noise ratio, the one with z below the prior's.",
        )
    },
)
