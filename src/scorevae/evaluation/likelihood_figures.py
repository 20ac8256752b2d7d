"""The picture of the likelihood bound: at which noise does z help?"""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from scorevae.evaluation.bound import Bounds


def integrand_figure(bounds: Bounds) -> Figure:
    """Bits that the diffusion term pays at each noise level, for the prior and with the latent.

    The area between the curves is what z saves there, to be held against its rate, which the
    legend names. Bands are two standard errors; right of the line networks are extrapolated.
    """
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    curves = {"prior": bounds.prior, "ScoreVAE": bounds.scorevae}
    for name, bound in curves.items():
        if bound is None:
            continue
        bits = bound.bits_per_dimension()
        label = f"{name}: area {bits['diffusion'].mean:.2f}, rate {bits['rate'].mean:.2f}"
        log_snr, mean, error, _ = bound.integrand
        (line,) = axis.plot(log_snr, mean, label=label)
        axis.fill_between(
            log_snr, mean - 2 * error, mean + 2 * error, color=line.get_color(), alpha=0.3, lw=0
        )
    axis.axvline(bounds.prior.integrand.trained, color="grey", linestyle=":", label="t_min")
    axis.set(
        title="where z helps: cost of the diffusion term",
        xlabel="ln-SNR (noise on the left, image on the right)",
        ylabel="bits per dimension and unit",
        ylim=(0, None),
    )
    axis.legend(fontsize=8)
    return figure
