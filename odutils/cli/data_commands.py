"""What the commands do that make data sets, or look at them. Heavy packages are imported where they are used.

Every function takes the parsed arguments, prints what was done, and returns the exit code (see `__main__.py`).
"""

from argparse import Namespace

from odutils.cli.inputs import complain, find_split, splits_of
from odutils.errors import InputError, plural

SHOWN = 6  # classes that a part lacks, in one line


def convert(args: Namespace) -> int:
    from odutils.coco.convert import convert

    done = convert(args.source, args.format, args.images, args.out, args.split, args.classes)
    objects = ", ".join(f"{name} {count}" for name, count in done.objects.items())
    total = sum(done.objects.values())
    print(f"{done.file}: {plural(done.images, 'image')}, {done.empty or 'none'} of them without objects")
    print(f"{plural(total, 'object')}: {objects}")
    for note in done.notes:
        print(note)
    print(f"look for faults: python -m odutils check --data {args.out} --split {args.split}")
    return 0


def split(args: Namespace) -> int:
    from odutils.coco.splitting import split_dataset

    splits = splits_of(args.data)
    if args.split is None and len(splits) > 1:
        raise InputError(f"{args.data}: name one of its splits with --split: {', '.join(splits)}")
    name = find_split(args.data, args.split, splits)
    if len(shares := dict(args.parts)) < len(args.parts):
        raise InputError("--parts names a part twice")
    parts = split_dataset(args.data, name, args.out, shares, args.by, args.seed)
    classes = [name for name in parts[0].objects if any(part.objects[name] for part in parts)]
    rows = [("", *(part.name for part in parts)), ("groups", *(part.groups for part in parts))]
    rows += [("images", *(part.images for part in parts))]
    objects = [sum(part.objects.values()) for part in parts]
    rows += [("objects", *objects)]
    rows += [("share of the objects", *(f"{count / max(1, sum(objects)):.2f}" for count in objects))]
    rows += [(name, *(part.objects[name] for part in parts)) for name in classes]
    first, *others = (max(len(str(row[column])) for row in rows) for column in range(len(rows[0])))
    for title, *cells in rows:
        columns = (f"{cell:>{width}}" for cell, width in zip(cells, others, strict=True))
        print(f"{title:<{first}}", *columns, sep="  ")
    if missing := [f"{name} in {part.name}" for name in classes for part in parts if not part.objects[name]]:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        why = "too few groups have one, or the shares do not allow it; another --seed may"
        complain(f"no object of {', '.join(missing[:SHOWN])}{more}: {why}")
    print(f"{args.out}: groups by {args.by}, seed {args.seed}; try: python -m odutils check --data {args.out}")
    return 0


def check(args: Namespace) -> int:
    from odutils.coco.checking import check_dataset, to_text

    splits, count = [find_split(args.data, args.split, ())] if args.split else splits_of(args.data), 0
    for split in splits:
        problems = check_dataset(args.data, split)
        count += len(problems)
        print(f"{args.data}, {split}: {plural(len(problems), 'problem')} found")
        if problems:
            print(to_text(problems))
    return 1 if count else 0


def download_coco(args: Namespace) -> int:
    from odutils.coco import download

    print(f"COCO 2017 is in {download.download_coco(args.root, tuple(args.splits))}")
    return 0


def download_weights(args: Namespace) -> int:
    from odutils import weights

    print(f"the weights are in {weights.download_weights(args.link, args.out)}")
    return 0


def sample(args: Namespace) -> int:
    from odutils.sample.make import make_sample

    images = args.images[0] if len(args.images) == 1 else tuple(args.images)
    if len(args.images) > 2:
        raise InputError("--images takes one number, or two: for train and for val")
    root = make_sample(args.root, images, args.size, args.seed)
    print(f"a data set is in {root}; try: python -m odutils train --data {root}")
    return 0
