"""What a page with views shows, and how one uses it."""

import base64

import numpy as np


def pixels(page, selector="[data-id=screen]"):
    """What a canvas shows, [H, W, 3] from 0 to 255."""
    size = page.evaluate(
        f"(({{width, height}}) => [height, width])(document.querySelector('{selector}'))"
    )
    data = page.evaluate(
        f"""() => {{
          const canvas = document.querySelector('{selector}');
          const copy = new OffscreenCanvas(canvas.width, canvas.height);
          const context = copy.getContext('2d', {{willReadFrequently: true}});
          context.drawImage(canvas, 0, 0);
          const {{data}} = context.getImageData(0, 0, canvas.width, canvas.height);
          let text = '';
          for (const byte of data) text += String.fromCharCode(byte);
          return btoa(text);
        }}"""
    )
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(*size, 4)[..., :3].astype(int)


def chip(page, word):
    """The button of a word."""
    return page.locator(".wv-chip", has_text=word).first


def choose(page, **places):
    """Choose a layer, head or step by its name; None for the mean."""
    for axis, place in places.items():
        page.locator(f"[data-id={axis}]").select_option(
            label="mean" if place is None else str(place)
        )
