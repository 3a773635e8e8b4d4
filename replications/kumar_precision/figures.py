"""Figures of Kumar et al. (arXiv 2411.04330) from our table: delta against D (their Figure 2), slopes, constants."""

from shared.report.figures.gallery import Drawing
from shared.report.figures.paper import Material, constants_drawing, delta_drawing, slope_drawing

TITLE = "Kumar et al. 2024: Scaling Laws for Precision"
LAW = "C_T · D^gamma_D / N^gamma_N · exp(-P / gamma_post)"
PANELS = (("C_T", "C_T"), ("gamma_D", "gamma_D"), ("gamma_N", "gamma_N"), ("gamma_post", "gamma_post (bits)"))


def draw(material: Material) -> list[Drawing]:
    return [
        delta_drawing(material, "cooled", LAW),
        delta_drawing(material, "trunk", LAW),
        slope_drawing(material, "cooled", "gamma_D"),
        slope_drawing(material, "trunk", "gamma_D"),
        constants_drawing(material, PANELS),
    ]
