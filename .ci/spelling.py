"""Fail on words that are misspelled, or that are not those of the field, in what a user reads.

A small list of what has been seen or is often seen, in place of a dictionary that would not know the field's words.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
READ = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "torchridge").rglob("*.py")]
READ += [*(ROOT / "examples").glob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]

WRONG = {
    r"accomodat\w*": "accommodate",
    r"adress\w*": "address",
    r"agains\b": "against",
    r"apropriate": "appropriate",
    r"arbitary": "arbitrary",
    r"asymetric\w*": "asymmetric",
    r"begining": "beginning",
    r"calender": "calendar",
    r"choosen": "chosen",
    r"comparision": "comparison",
    r"consistant": "consistent",
    r"convergance": "convergence",
    r"definate\w*": "definite",
    r"dependan\w*": "dependent",
    r"deviaton": "deviation",
    r"diagonalis\w*": "diagonalize",
    r"dimesion\w*": "dimension",
    r"eigen-value\w*": "eigenvalue",
    r"enviroment\w*": "environment",
    r"equivalant": "equivalent",
    r"existance": "existence",
    r"explaination": "explanation",
    r"futher": "further",
    r"gaurant\w*": "guarantee",
    r"guarante[^e]\w*": "guarantee",
    r"hieght": "height",
    r"independant\w*": "independent",
    r"initalis\w*": "initialize",
    r"intial\w*": "initial",
    r"lamda": "lambda",
    r"lenght\w*": "length",
    r"liklihood": "likelihood",
    r"neccess\w*": "necessary",
    r"occured": "occurred",
    r"occurence\w*": "occurrence",
    r"optimis\w*": "optimize",
    r"orthagonal": "orthogonal",
    r"paramter\w*": "parameter",
    r"penalis\w*": "penalize",
    r"persistant": "persistent",
    r"posible": "possible",
    r"preceed\w*": "precede",
    r"preconditionner": "preconditioner",
    r"recieve\w*": "receive",
    r"recomend\w*": "recommend",
    r"regresion": "regression",
    r"regularis\w*": "regularize",
    r"relevent": "relevant",
    r"resid?ula\w*": "residual",
    r"seperat\w*": "separate",
    r"similiar": "similar",
    r"standardis\w*": "standardize",
    r"succesful\w*": "successful",
    r"sucess\w*": "success",
    r"supress\w*": "suppress",
    r"symetric\w*": "symmetric",
    r"targetted": "targeted",
    r"tolerence": "tolerance",
    r"truely": "truly",
    r"untill": "until",
    r"varience": "variance",
    r"wich": "which",
    r"whithin": "within",
    r"writen": "written",
    r"(?P<twice>the|a|is|of|and|to|in) (?P=twice)": "the word once",
}
PATTERN = re.compile("|".join(rf"\b(?:{wrong})\b" for wrong in WRONG), re.IGNORECASE)


def found() -> list[str]:
    """Where a word of the list stands, and what was meant."""
    places = []
    for path in sorted(READ):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for match in PATTERN.finditer(line):
                meant = next(right for wrong, right in WRONG.items() if re.fullmatch(wrong, match[0], re.IGNORECASE))
                places.append(f"{path.relative_to(ROOT)}:{number}: {match[0]!r}, meant: {meant}")
    return places


if __name__ == "__main__":
    sys.exit("\n".join(found()) or None)
