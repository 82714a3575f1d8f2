"""The land of a scene, painted from back to front: sky, mountains, lake, meadow, road."""

from dataclasses import dataclass

import numpy as np

from tasks.painting import Array, Canvas, Rgb, mix, noise, rgb, smoothstep

SKY, MOUNTAIN, MEADOW, WATER, ROAD, HOUSE, TREE, CAR = range(8)


@dataclass(frozen=True, kw_only=True)
class Light:
    """A time of day and year: the colours that everything else is mixed from."""

    zenith: Rgb
    horizon: Rgb
    sun: Rgb
    rock: Rgb
    grass: Rgb
    leaf: Rgb
    shade: float
    lamps: bool


LIGHTS = (
    Light(  # a summer noon
        zenith=(64, 132, 214), horizon=(190, 222, 242), sun=(255, 250, 226),
        rock=(126, 124, 140), grass=(112, 168, 62), leaf=(44, 112, 46), shade=1.0, lamps=False,
    ),
    Light(  # a golden evening
        zenith=(92, 132, 196), horizon=(255, 208, 142), sun=(255, 226, 160),
        rock=(140, 112, 118), grass=(158, 160, 58), leaf=(66, 104, 36), shade=0.97, lamps=False,
    ),
    Light(  # dusk
        zenith=(52, 54, 112), horizon=(240, 142, 122), sun=(255, 172, 120),
        rock=(84, 72, 108), grass=(74, 104, 66), leaf=(28, 66, 50), shade=0.82, lamps=True,
    ),
    Light(  # an overcast morning
        zenith=(150, 168, 186), horizon=(216, 222, 226), sun=(240, 240, 236),
        rock=(118, 124, 132), grass=(116, 152, 86), leaf=(54, 102, 62), shade=0.95, lamps=False,
    ),
    Light(  # autumn
        zenith=(98, 150, 204), horizon=(226, 226, 218), sun=(255, 240, 200),
        rock=(120, 116, 130), grass=(138, 150, 70), leaf=(192, 98, 32), shade=1.0, lamps=False,
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Land:
    """Where things are on one canvas, in spots."""

    width: float
    bottom: float
    horizon: float
    sun_x: float
    sun_y: float
    vanish_x: float
    road_x: float
    road_width: float
    bend: float
    light: Light

    @property
    def sunny_side(self) -> int:
        """1 where the sun stands on the right, -1 where it stands on the left."""
        return 1 if self.sun_x > self.width / 2 else -1

    def depth(self, y: Array | float) -> Array:
        """0 at the horizon, 1 at the lower edge of the picture."""
        return np.clip((np.asarray(y) - self.horizon) / (self.bottom - self.horizon), 0, 1)

    def road_centre(self, y: Array | float) -> Array:
        """How far right the middle of the road lies at height ``y``."""
        near = self.depth(y)
        sway = self.bend * np.sin(near * np.pi) * (1 - near)
        return np.asarray(self.vanish_x + (self.road_x - self.vanish_x) * near + sway)

    def road_half(self, y: Array | float) -> Array:
        """Half the width of the road at height ``y``."""
        return np.asarray(self.road_width / 2 * (0.03 + 0.97 * self.depth(y) ** 1.15))


def survey(rng: np.random.Generator, canvas: Canvas) -> Land:
    """A new piece of land: where the horizon, the sun and the road lie, in which light."""
    height, width = canvas.shape
    return Land(
        width=width,
        bottom=height,
        horizon=height * rng.uniform(0.4, 0.5),
        sun_x=width * rng.uniform(0.1, 0.9),
        sun_y=height * rng.uniform(0.08, 0.26),
        vanish_x=width * rng.uniform(0.38, 0.62),
        road_x=width * rng.uniform(0.36, 0.64),
        road_width=width * rng.uniform(0.5, 0.66),
        bend=width * rng.uniform(-0.45, 0.45),
        light=LIGHTS[rng.integers(len(LIGHTS))],
    )


def paint_sky(rng: np.random.Generator, canvas: Canvas, land: Land) -> None:
    """A gradient, the sun with its glow, and clouds lit from the sun's side."""
    light, unit = land.light, canvas.unit
    canvas = canvas.window(0, 0, land.width, land.horizon)
    sky = mix(light.zenith, light.horizon, (canvas.y / land.horizon).clip(0, 1) ** 0.9)
    far = np.hypot(canvas.x - land.sun_x, canvas.y - land.sun_y) / unit
    sky = mix(sky, light.sun, 0.7 * np.exp(-far / 26) + smoothstep(11, 9, far) * 0.3)
    lumps = noise(rng, canvas, 44 * unit, octaves=5, stretch=2.2)
    cover = rng.uniform(0.44, 0.62)
    rows, columns = (np.arange(side) for side in canvas.shape)
    rows = np.clip(rows + round(3 * unit), 0, canvas.shape[0] - 1)
    columns = np.clip(columns - round(4 * unit) * land.sunny_side, 0, canvas.shape[1] - 1)
    lit = lumps - lumps[np.ix_(rows, columns)]
    cloud = mix(mix(light.horizon, light.zenith, 0.25), (255, 253, 250), 0.62 + 2.4 * lit)
    cloud = mix(cloud, light.horizon, 0.18)
    veil = smoothstep(cover, cover + 0.22, lumps) * smoothstep(1.0, 0.55, canvas.y / land.horizon)
    everywhere = np.ones_like(canvas.label, bool)
    canvas.paint(everywhere, mix(sky, cloud.clip(0, 255), 0.92 * veil), SKY)


def _outline(rng: np.random.Generator, canvas: Canvas, size: float, octaves: int) -> Array:
    """The height of a ridge or hill from 0 to 1, for each column."""
    row = canvas.window(0, 0, canvas.shape[1], 0)
    return np.asarray(noise(rng, row, size, octaves=octaves)[0])


def paint_mountains(rng: np.random.Generator, canvas: Canvas, land: Land) -> None:
    """Two ranges with lit and shaded flanks, the far one paler, with snow on what is high."""
    canvas = canvas.window(0, land.horizon - 80 * canvas.unit, land.width, land.horizon + 2)
    for reach, haze in ((rng.uniform(52, 74), 0.45), (rng.uniform(26, 44), 0.18)):
        outline = _outline(rng, canvas, 56 * canvas.unit, octaves=5)
        ridge = land.horizon - canvas.unit * reach * (0.2 + 0.8 * outline)
        folds = np.abs(noise(rng, canvas, 30 * canvas.unit, octaves=5, stretch=0.7) - 0.5)
        slope = np.gradient(ridge)[None, :] * 0.35 + np.gradient(folds, axis=1) * 30
        shade = np.clip(0.84 + land.sunny_side * slope * 0.5, 0.45, 1.25)
        rock = rgb(land.light.rock) * shade[..., None]
        below = (canvas.y - ridge) / canvas.unit
        height = (land.horizon - canvas.y) / canvas.unit
        snow = smoothstep(34, 44, height + 26 * (folds - 0.2)) * smoothstep(30, 8, below)
        rock = mix(rock, rgb([250, 250, 255]) * shade[..., None].clip(0.72, 1), 0.92 * snow)
        rock = mix(rock, land.light.horizon, haze + 0.25 * smoothstep(30, 0, height))
        canvas.paint(below > 0, rock, MOUNTAIN)


def paint_meadow(rng: np.random.Generator, canvas: Canvas, land: Land) -> None:
    """Rolling hills behind, then grass with blades and flowers that grow towards us."""
    unit, light = canvas.unit, land.light
    canvas = canvas.window(0, land.horizon - 10 * unit, land.width, land.bottom)
    hills = land.horizon - unit * rng.uniform(3, 9) * _outline(rng, canvas, 60 * unit, octaves=2)
    near = land.depth(canvas.y)
    far_green = mix(light.grass, light.horizon, 0.25)
    green = mix(far_green, rgb(light.grass) * 0.86, near)
    lumps = noise(rng, canvas, 26 * unit, octaves=4, stretch=3.5) - 0.5
    blades = noise(rng, canvas, 5 * unit, octaves=3, stretch=0.3) - 0.5
    bright = 1 + 0.34 * lumps + (0.14 + 0.3 * near) * blades
    green = green * bright[..., None] + rgb([16, 8, -8]) * lumps[..., None]
    where = canvas.y >= hills
    canvas.paint(where, green.clip(0, 255), MEADOW)
    _sow(rng, canvas, land)


def _sow(rng: np.random.Generator, canvas: Canvas, land: Land) -> None:
    """Flowers of one kind, denser where the ground likes them."""
    bloom = ((250, 240, 240), (246, 214, 70), (226, 74, 66), (190, 150, 226))[rng.integers(4)]
    patches = noise(rng, canvas, 40 * canvas.unit, octaves=3, stretch=2.5)
    for _ in range(rng.integers(120, 320)):
        y = rng.uniform(land.horizon + 8 * canvas.unit, land.bottom)
        x = rng.uniform(0, land.width)
        row, column = int(y - canvas.y[0, 0]), int(x)
        if patches[row, column] > 0.55:
            size = round(canvas.unit * (1 + 2 * float(land.depth(y))))
            flower = canvas.pixels[row : row + size, column : column + size]
            flower += (rgb(bloom) - flower) * 0.9


def paint_lake(rng: np.random.Generator, canvas: Canvas, land: Land, side: int) -> None:
    """A lake on one side of the road that mirrors what stands above the horizon."""
    unit = canvas.unit
    x = land.width * (0.5 + side * rng.uniform(0.3, 0.42))
    y = land.horizon + unit * rng.uniform(17, 24)
    radius_x, radius_y = land.width * rng.uniform(0.36, 0.48), unit * rng.uniform(14, 20)
    top = land.horizon + unit
    canvas, picture = canvas.window(0, top, land.width, y + radius_y * 1.5), canvas.pixels
    shore = 1 + 0.3 * (noise(rng, canvas, 24 * unit, octaves=3) - 0.5)
    reach = np.hypot((canvas.x - x) / radius_x, (canvas.y - y) / radius_y) / shore
    ripples = noise(rng, canvas, 4 * unit, octaves=2, stretch=7) - 0.5
    mirrored = 2 * land.horizon - canvas.y - 4 * unit + ripples * 5 * unit
    rows = np.clip(mirrored, 0, land.horizon - 1).astype(int)
    deep = mix(land.light.zenith, (12, 84, 124), 0.6)
    below = smoothstep(land.horizon - 4 * unit, y + radius_y, canvas.y)
    water = mix(picture[rows, canvas.x.astype(int)], deep, 0.5 + 0.3 * below)
    water = mix(water, (255, 255, 255), np.clip(ripples - 0.14, 0, 1) * 1.2)
    inside = (reach < 1) & (canvas.y > top + unit)
    bank = (reach < 1 + 2.4 * unit / radius_y) & ~inside
    canvas.tint(bank, (196, 180, 138), 0.55)
    canvas.paint(inside, water, WATER)


def paint_road(rng: np.random.Generator, canvas: Canvas, land: Land) -> None:
    """Asphalt in perspective with edge lines and a dashed middle."""
    canvas = canvas.window(0, land.horizon + 0.5 * canvas.unit, land.width, land.bottom)
    centre, half = land.road_centre(canvas.y), land.road_half(canvas.y)
    near = land.depth(canvas.y)
    across = (canvas.x - centre) / half
    asphalt = mix((112, 112, 118), (84, 84, 90), near)
    grain = noise(rng, canvas, 3 * canvas.unit, octaves=2) - 0.5
    patches = noise(rng, canvas, 30 * canvas.unit, octaves=3, stretch=0.5) - 0.5
    ruts = np.exp(-(((np.abs(across) - 0.48) / 0.1) ** 2))
    worn = (1 + 0.13 * grain * near + 0.12 * patches) * (1 - 0.14 * ruts)
    dashes = (4.2 / (near + 0.09)) % 2.6 < 1.3
    lines = (np.abs(np.abs(across) - 0.9) < 0.03) | ((np.abs(across) < 0.03) & dashes)
    painted = lines * np.clip(near * 4, 0.35, 0.95)
    verge = (np.abs(across) < 1.1) & (canvas.label == MEADOW)
    canvas.tint(verge, (164, 148, 112), 0.7)
    asphalt = mix(asphalt * worn[..., None], (238, 236, 226), painted)
    canvas.paint(np.abs(across) < 1, asphalt, ROAD)
