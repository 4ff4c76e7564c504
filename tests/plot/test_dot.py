import hypothesis
import hypothesis.strategies as st

from gaea_jax import plot


def test_a_graphviz_file_is_what_it_should_be(tmp_path):
    nodes, edges = ["c_{k-1}", "0\ninput", 'a "b" \\n'], [(0, 1, "sep_conv_3x3"), (1, 2, "")]
    plot.write_dot(nodes, edges, tmp_path / "new" / "a.dot", "a cell")
    assert (
        (tmp_path / "new" / "a.dot").read_text()
        == r"""digraph {
  rankdir=LR;
  labelloc=t;
  label="a cell";
  node [shape=circle];
  n0 [label="c_{k-1}"];
  n1 [label="0\ninput"];
  n2 [label="a \"b\" \\n"];
  n0 -> n1 [label="sep_conv_3x3"];
  n1 -> n2;
}
"""
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.dot"]


@hypothesis.given(st.lists(st.text('ab"\\\n;[]{}<>é', max_size=8), min_size=2, max_size=4), st.data())
@hypothesis.settings(deadline=None, max_examples=50)
def test_any_name_in_a_graphviz_file_is_read_back(tmp_path_factory, read_dot, nodes, data):
    edges = [(0, index, data.draw(st.sampled_from([*nodes, ""]))) for index in range(1, len(nodes))]
    path = tmp_path_factory.mktemp("dot") / "a.dot"
    plot.write_dot(nodes, edges, path, nodes[0])
    assert read_dot(path.read_text(encoding="utf-8")) == (nodes, edges, nodes[0])
