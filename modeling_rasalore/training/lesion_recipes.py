"""List what painted lesions are like in each sequence, every number with its source.

Intensities are multiples of the median of the scan's brain, which is 1; strengths are differences
to what was there. "Measured" stands for the ranges of oedema, core and rim of 8 patients of BraTS
2021, by their masks: in T1 and T1ce, results on those patients are not quite free of pixel labels.
Relaxation times explain them: white and grey matter at 3 T have T1 of 1084 and 1820 ms and T2 of 69
and 99 ms (Stanisz et al. 2005), tumours longer ones of both, and contrast agent shortens T1 by 838
+- 210 ms in the enhancing part but by 123 +- 74 ms in oedema (33 patients of "Quantitative T1
mapping indicates tumor infiltration beyond the enhancing part of glioblastomas", 2020).
"""

from dataclasses import dataclass, replace

from ..data.patient import ALL
from ..scans.naming import MODALITIES

Span = tuple[float, float]  # lowest and highest of evenly drawn values


@dataclass(frozen=True)
class Look:
    """How lesions look in one sequence.

    Attributes:
        strength: what is added to the local level where there is oedema.
        core_share: of the lesions, with a core.
        core_mm: diameter of the smallest ones; smaller lesions have none.
        core: level of the core as a multiple of the local level.
        rim_share: of the cores, with a rim.
        rim: level of the rim as a multiple of the local level.
        fluid: levels at which fluid begins and at which nothing else is left; the second is the
            lower one where fluid is dark. Lesions leave fluid as it is.
        white: levels of white matter.
    """

    strength: Span
    core_share: float
    core_mm: float
    core: Span
    rim_share: float
    rim: Span
    fluid: Span
    white: Span


@dataclass(frozen=True)
class LesionRecipe:
    """How many lesions a slice gets, how large, of what form; and how they look.

    Attributes:
        looks: of each sequence that is painted.
        blank_share: of the slices, without lesion.
        further: probabilities of a second, third and fourth lesion.
        smallest_mm: diameter of the smallest lesions.
        smallest_pixels: the same in pixels; the larger of both counts.
        small_share: of the first lesions, smaller than the usual ones.
        sizes: diameters of usual first lesions as shares of the frame.
        further_sizes: diameters of second to fourth lesions as shares of the frame.
        scattered_share: of the slices, with many small lesions in white matter instead, as in
            multiple sclerosis.
        scattered_count: fewest and most of those.
        scattered_mm: their diameters.
        stretch: ellipsoids are longer and shorter than round ones by up to e^stretch.
        roughness: of the outline, per scale: knots along the frame, standard deviation of the
            log distance from the centre, and agreement of slices 5 mm apart.
        crossing: share of lesions that pass from one half of the frame to the other; most tumours
            stop at the midline.
        following: share of lesions that follow the tissue they begin in.
        reluctance: how much longer their way is through other tissue, per standard deviation of
            the tissue's intensity.
        softness: width of the edge, as a share of the radius.
        blended: share of lesions that replace texture by that of elsewhere; others are added.
        mottle: largest standard deviation of ups and downs of what a lesion adds or replaces.
        core_size: radius of the core, as a share of the lesion's.
        core_softness: width of the core's edge, as a share of the lesion's radius.
        rim_width: as a share of the core's radius; near 1, the whole core enhances.
        rim_mm: thickest rim.
        bias: standard deviation of the log of the field that every slice is multiplied by.
        visible: strengths below it are not asked for.
        clear: strengths from which a lesion is asked for; of fainter ones no loss says anything.
        neighbour_mm: between the slices of a view.
    """

    looks: tuple[Look, ...]
    blank_share: float = 0.25
    further: tuple[float, ...] = (0.45, 0.3, 0.25)
    # Lesions of multiple sclerosis have a median of 2.5 to 3.2 mm in a slice (measured, MSLUB).
    smallest_mm: float = 2.0
    smallest_pixels: float = 1.5
    # With a quarter of small ones, scattered ones on 15 % of the slices and softer edges, a U-Net
    # had an average precision of 77 instead of 81 on 20 people of TCGA-LGG, by their masks: results
    # on those are not quite free of pixel labels.
    small_share: float = 0.1
    sizes: Span = (0.06, 0.6)
    further_sizes: Span = (0.03, 0.25)
    scattered_share: float = 0.0
    scattered_count: tuple[int, int] = (3, 10)
    scattered_mm: Span = (2.0, 12.0)
    stretch: float = 0.4
    roughness: tuple[tuple[int, float, float], ...] = (
        (5, 0.25, 0.95),
        (12, 0.15, 0.8),
        (30, 0.07, 0.3),
    )
    crossing: float = 0.15
    following: float = 0.6
    reluctance: Span = (0.0, 0.5)
    softness: Span = (0.05, 0.6)
    blended: float = 0.5
    mottle: float = 0.35
    core_size: Span = (0.35, 0.85)
    core_softness: Span = (0.08, 0.4)
    rim_width: Span = (0.1, 1.0)
    rim_mm: float = 10.0
    bias: float = 0.12
    visible: float = 0.03
    clear: float = 0.1
    neighbour_mm: float = 5.0


LOOKS = {
    "t1": Look(
        strength=(-0.2, 0.05),  # measured 0.96 to 1.08 of the median; white matter has 1.1 to 1.2
        core_share=0.7,
        core_mm=8.0,
        core=(0.55, 0.95),  # fluid-like T1 of necrosis to tumour tissue
        rim_share=0.2,
        rim=(0.95, 1.1),  # without contrast agent a rim is tissue, sometimes blood
        fluid=(0.65, 0.45),
        white=(1.0, 1.4),
    ),
    "t1ce": Look(
        strength=(-0.09, 0.16),  # measured 0.91 to 1.16
        core_share=0.75,
        core_mm=0.0,  # the smallest metastases enhance as a whole
        core=(0.64, 1.15),  # measured
        rim_share=0.75,  # most enhance; half of BraTS 2021's lower grades do not
        rim=(1.22, 1.6),  # measured medians of 1.22 to 1.47 per patient
        fluid=(0.65, 0.45),
        white=(1.0, 1.4),
    ),
    "t2": Look(
        strength=(0.03, 0.9),  # measured 1.13 to 1.79 of the median, and fainter ones
        core_share=0.35,
        core_mm=8.0,
        core=(0.5, 2.4),  # blood and dense tissue to T2 of 225 ms and cysts as bright as fluid
        rim_share=0.3,
        rim=(0.8, 1.5),
        fluid=(1.8, 2.4),
        white=(0.6, 1.0),
    ),
    "flair": Look(
        strength=(0.03, 0.9),  # measured 1.19 to 1.52 of the median, and fainter ones
        core_share=0.25,
        core_mm=8.0,
        core=(0.5, 1.3),  # fluid in a cavity is dark
        rim_share=0.3,
        rim=(1.0, 1.5),
        fluid=(0.6, 0.4),
        white=(0.7, 1.05),
    ),
}
SCATTERED = {"t2": 0.07, "flair": 0.07}  # multiple sclerosis is hardly seen in T1


def lesion_recipe(modality: str, blank_share: float | None = None) -> LesionRecipe:
    """Return how lesions are painted in a sequence, or in all four at once.

    Args:
        modality: t1, t1ce, t2, flair or all.
        blank_share: of the slices, without lesion; None for the table's.

    Raises:
        ValueError: nothing is known about the sequence.
    """
    names = MODALITIES if modality == ALL else (modality,)
    if unknown := set(names) - set(LOOKS):
        raise ValueError(
            f"lesions can be painted in {', '.join(LOOKS)} or {ALL}, got {unknown.pop()}; train on "
            "pseudo-masks alone, with synthetic_lesions.share=0."
        )
    looks = tuple(LOOKS[name] for name in names)
    recipe = LesionRecipe(looks, scattered_share=max(SCATTERED.get(name, 0.0) for name in names))
    return recipe if blank_share is None else replace(recipe, blank_share=blank_share)
