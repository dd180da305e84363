"""Templates made to use time and memory out of all proportion, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NUMBERS = ("0", "1", "-1", "7", "99999", "10 ** 7", "10 ** 10", "2 ** 63", "10 ** 10 ** 3", "1.5", "1e308")
_TEXTS = (
    "''",
    "'a'",
    "'a b '",
    "'<a>&'",
    "'%d'",
    "'%3000000000d'",
    "'{:>3000000000}'",
    "'\\n'",
    "'é'",
    "'http://x.y '",
)
_OTHERS = (
    "messages",
    "range(99999)",
    "[1]",
    "{'a': 1}",
    "none",
    "true",
    "ns.s",
    "tools",
    "loop",
    "f",
    "()",
    "cycler(1)",
)
_FILTERS = _words(
    "abs attr batch capitalize center count default dictsort escape filesizeformat first float forceescape "
    "format groupby indent int items join last length list lower map max min pprint random reject rejectattr "
    "replace reverse round safe select selectattr slice sort string striptags sum title tojson trim truncate "
    "unique upper urlencode urlize wordcount wordwrap xmlattr"
)
_METHODS = _words("center ljust rjust zfill expandtabs replace split join format encode translate strip splitlines")
_TESTS = _words("in defined eq gt divisibleby sameas mapping iterable string filter test")

_atoms = st.sampled_from((*_NUMBERS, *_TEXTS, *_OTHERS))


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    name, method, test = st.sampled_from(_FILTERS), st.sampled_from(_METHODS), st.sampled_from(_TESTS)
    operator = st.sampled_from(("+", "*", "**", "~", "%", "//", "in", "and", "or", "=="))
    return st.one_of(
        st.builds("({} {} {})".format, inner, operator, inner),
        st.builds("({} | {})".format, inner, name),
        st.builds("({} | {}({}))".format, inner, name, inner),
        st.builds("({} | {}({}, {}))".format, inner, name, inner, inner),
        st.builds("({} | sum(start={}))".format, inner, inner),
        st.builds("({} | {}('{}', {}) | list)".format, inner, st.sampled_from(("select", "reject")), test, inner),
        st.builds("({}).{}({})".format, inner, method, inner),
        st.builds("({}).{}({}, {})".format, inner, method, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("({})[{}:]".format, inner, inner),
        st.builds("range({})".format, inner),
        st.builds("strftime_now({})".format, inner),
        st.builds("f({})".format, inner),
        st.builds("raise_exception({})".format, inner),
    )


_expressions = st.recursive(_atoms, _larger, max_leaves=8)
_bodies = st.recursive(
    st.one_of(st.builds("{{{{ {} }}}}".format, _expressions), st.builds("{{% set ns.s = {} %}}".format, _expressions)),
    lambda body: st.one_of(
        st.builds("{{% for x in {} %}}{}{{% endfor %}}".format, _expressions, body),
        st.builds("{{% for x in {} recursive %}}{}{{{{ loop([x, x]) }}}}{{% endfor %}}".format, _expressions, body),
        st.builds("{{% if {} %}}{}{{% endif %}}".format, _expressions, body),
        st.builds("{}{}".format, body, body),
        st.builds("{{% filter {} %}}{}{{% endfilter %}}".format, st.sampled_from(_FILTERS), body),
    ),
    max_leaves=4,
)

#: Whole templates, with a macro that calls itself and a variable that loops can let grow.
nasty_templates = st.builds(
    "{{% set ns = namespace(s='ab') %}}{{% macro f(n) %}}{{{{ f(n) }}}}{{{{ n }}}}{{% endmacro %}}{}".format, _bodies
)
