"""Figures of Ouyang et al. (arXiv 2411.17691) from our table: delta against D (their Figure 6), slopes, constants."""

from shared.report.figures.gallery import Drawing
from shared.report.figures.paper import Material, constants_drawing, delta_drawing, slope_drawing

TITLE = "Ouyang et al. 2024: Low-Bit Quantization Favors Undertrained LLMs"
LAW = "k · D^beta / (N^alpha · P^gamma)"
PANELS = (("k", "k"), ("beta", "beta (of D)"), ("alpha", "alpha (of N)"), ("gamma", "gamma (of bits)"))


def draw(material: Material) -> list[Drawing]:
    return [
        delta_drawing(material, "cooled", LAW),
        delta_drawing(material, "trunk", LAW),
        slope_drawing(material, "cooled", "beta"),
        slope_drawing(material, "trunk", "beta"),
        constants_drawing(material, PANELS),
    ]
