import numpy as np
from dataclasses import dataclass
from dpsyn.embedding.pixels import Pixels


@dataclass(frozen=True)
class Edges(Pixels):
    directions: int = 8
    pool: int = 2
    unit: bool = False
    keep: float = 0.0

    def __call__(self, samples):
        n, h, w, c = samples.content.shape
        base = super().__call__(samples).reshape(n, c, *(self.size or (h, w)))
        out = base.reshape(n, -1)
        if self.directions:
            p = np.pad(base, ((0, 0), (0, 0), (1, 1), (1, 1)))
            gy = (p[:, :, 2:, 1:-1] - p[:, :, :-2, 1:-1]) / 2
            gx = (p[:, :, 1:-1, 2:] - p[:, :, 1:-1, :-2]) / 2
            maps = [
                np.maximum(gx * np.float32(np.cos(a)) + gy * np.float32(np.sin(a)), 0)
                for a in np.arange(self.directions) * 2 * np.pi / self.directions
            ]
            m = np.concatenate(maps, 1)
            H, W = m.shape[2] // self.pool * self.pool, m.shape[3] // self.pool * self.pool
            m = (
                m[:, :, :H, :W]
                .reshape(n, m.shape[1], H // self.pool, self.pool, W // self.pool, self.pool)
                .mean((3, 5))
            )
            out = (
                np.concatenate([m.reshape(n, -1) * self.pool, out * np.float32(self.keep)], 1)
                if self.keep
                else m.reshape(n, -1)
            )
        if self.unit:
            out = out / np.maximum(np.sqrt((out * out).sum(1, keepdims=True)), 1e-6)
        return np.ascontiguousarray(out.astype(np.float32))
