"""Every strength from an orthogonal factor of the rows: the digits that no gram matrix of them holds.

The rows a_i = √s_i (x_i − x̄) are factored once, A = Q R D with the columns of R of norm one. At strength α, with
w = D⁻¹ v + prior and c_j² = α p_j / D_j²,

    ‖R v − Qᵀ b‖² + Σ_j c_j² v_j²

is a least-squares problem of the stacked columns (R; C), which are brought to norm one again and factored. So neither
the units of a column, nor free features (c_j = 0), nor penalties that differ by decades cost digits. If the columns
of R are dependent, their null space is eliminated: least squares first, then the penalty, then the norm of the rest.

Sources: Björck 1996, §2.9 (corrected seminormal equations) and §5.3, doi:10.1137/1.9781611971484; van der Sluis 1969,
doi:10.1007/BF02165096; Eldén 1982, doi:10.1007/BF01932761 (standard form with a null space).
"""
