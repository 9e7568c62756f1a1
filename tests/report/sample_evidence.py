"""Evidence as a night leaves it, made by hand: the shape and size of real figures, no measurement."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from recmeta.report.reliability import reliability

SHOTS = (0, 5, 10, 30, 100, 300)

SURFACES: dict[str, dict[str, float]] = {
    "bookmarking": {"rows": 34209, "positives": 1436, "test": 152, "start": 0.72, "end": 0.785},
    "commenting": {"rows": 34209, "positives": 1165, "test": 98, "start": 0.79, "end": 0.845},
    "following": {"rows": 34209, "positives": 1046, "test": 91, "start": 0.78, "end": 0.838},
    "liking": {"rows": 34209, "positives": 4536, "test": 512, "start": 0.74, "end": 0.789},
    "reading": {"rows": 152837, "positives": 30573, "test": 4211, "start": 0.88, "end": 0.931},
}


def transfer_evidence() -> dict[str, Any]:
    """A transfer.json of five surfaces, two of which get in another's way."""
    contexts = {name: _context(name, found) for name, found in SURFACES.items()}
    names = list(SURFACES)
    audit: dict[str, dict[str, Any]] = {}
    for a, source in enumerate(names):
        for b, target in enumerate(names):
            if a != b:
                value = 0.018 * math.sin(1.9 * a + 2.7 * b) + 0.004
                verdict = "helps" if value > 0.008 else "hurts" if value < -0.007 else "neutral"
                audit.setdefault(source, {})[target] = {
                    "value": round(value, 5),
                    "low": round(value - 0.007, 5),
                    "high": round(value + 0.007, 5),
                    "verdict": verdict,
                }
    shots = [str(k) for k in SHOTS]
    mean = {
        method: {
            k: float(np.mean([contexts[name]["curve"][method][k]["auc"] for name in names])) for k in shots
        }
        for method in ("ours", "joint_fine_tune", "lightgbm", "logistic", "popularity")
    }
    return {
        "settings": {"shots": list(SHOTS), "draws": 5, "negatives_per_positive": 8},
        "families": {name: [name] for name in names},
        "related": [{"a": "commenting", "b": "following", "correlation": 0.73}],
        "contexts": contexts,
        "mean": mean,
        "policy": [
            {"from_positives": 0, "rung": "zero_shot", "precision": 30.0, "newcomer": 0.2},
            {"from_positives": 5, "rung": "stack", "precision": 30.0, "newcomer": 0.2},
            {"from_positives": 100, "rung": "boosted", "precision": 10.0, "newcomer": 0.1},
        ],
        "learning_curve": {"ceiling": 0.84},
        "audit": audit,
        "remedies": {
            "reading": {
                "left_out": ["liking"],
                "auc_before": 0.9293,
                "auc_after": 0.9311,
                "low": 0.0004,
                "high": 0.0031,
                "helped": True,
            },
            "bookmarking": {
                "left_out": ["following", "reading"],
                "auc_before": 0.7764,
                "auc_after": 0.7702,
                "low": -0.0151,
                "high": 0.0020,
                "helped": False,
            },
        },
        "verdict": {name: _verdict(name, found) for name, found in SURFACES.items()},
    }


def calibration_evidence() -> dict[str, Any]:
    """A calibration.json: honest everywhere, apart from bookmarking, which promises too much."""
    found = {}
    for seed, (name, surface) in enumerate(SURFACES.items()):
        generator = np.random.default_rng(seed)
        rows = 6000
        rate = surface["positives"] / surface["rows"]
        logits = math.log(rate / (1 - rate)) + 1.1 * generator.standard_normal(rows)
        promised = 1 / (1 + np.exp(-logits))
        truth = promised * (0.55 if name == "bookmarking" else 1.0)
        label = (generator.random(rows) < truth).astype(float)
        found[name] = reliability(label, promised, user=generator.integers(0, 400, rows))
    return found


def _context(name: str, found: dict[str, float]) -> dict[str, Any]:
    start, end = found["start"], found["end"]

    def curve(low: float, high: float, pace: float, width: float) -> dict[str, Any]:
        points: dict[str, Any] = {}
        for k in (*SHOTS, int(found["positives"])):
            value = high - (high - low) * math.exp(-math.log1p(k) / pace)
            reach = width / (1 + 0.35 * math.log1p(k))
            points[str(k) if k in SHOTS else "all"] = {
                "auc": round(value, 4),
                "low": round(value - reach, 4),
                "high": round(value + reach, 4),
                "log_loss": round(0.14 - 0.02 * value, 4),
                "harm": None if k == 0 else 0.0,
            }
        return points

    return {
        "rows": int(found["rows"]),
        "positives": int(found["positives"]),
        "test_positives": int(found["test"]),
        "curve": {
            "ours": curve(start, end, 2.2, 0.02),
            "zero_shot": curve(start, start, 1.0, 0.02),
            "joint_fine_tune": curve(start - 0.02, end - 0.004, 3.2, 0.03),
            "lightgbm": curve(0.5, end + 0.002, 2.6, 0.06),
            "logistic": curve(0.5, end - 0.012, 2.0, 0.05),
            "popularity": curve(0.55, 0.55, 1.0, 0.02),
        },
        "rungs": {str(k): "zero_shot" if k < 5 else "stack" if k < 100 else "boosted" for k in SHOTS},
        "break_even": {
            "method": "logistic" if name == "liking" else "lightgbm",
            "positives": None if name in ("commenting", "following") else int(found["positives"] / 4),
        },
        "live": {
            "0": {"auc": round(start, 4), "low": start - 0.02, "high": start + 0.02},
            "0.5": {"auc": round(start + 0.012, 4), "low": start - 0.01, "high": start + 0.03},
            "1": {"auc": round(start + 0.02, 4), "low": start, "high": start + 0.04},
        },
    }


def _verdict(name: str, found: dict[str, float]) -> dict[str, Any]:
    end = found["end"]
    offsets = {
        "joint": -0.006,
        "joint_fine_tune": -0.004,
        "meta_learned": -0.007,
        "network_alone": -0.021,
        "lightgbm_alone": -0.003 if name != "commenting" else -0.024,
        "lightgbm_pooled": -0.008,
        "stack": 0.0,
    }
    methods = {
        method: {
            "auc": round(end + offset, 4),
            "low": round(end + offset - 0.014, 4),
            "high": round(end + offset + 0.013, 4),
        }
        for method, offset in offsets.items()
    }
    return {
        "methods": methods,
        "best": "stack",
        "serves": "stack",
        "line": f"On {name} sharing beats learning alone, by less than its interval against LightGBM.",
    }
