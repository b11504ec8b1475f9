"""A budget that falls while heads are chosen, as `HeadGates` asks a method for it."""

from __future__ import annotations

import pytest
from models import build_gated


class TestBudgetThatFalls:
    @pytest.mark.parametrize("method", ["dsp", "ste", "simple"])
    def test_is_the_number_of_heads_that_are_on_until_k_are_fixed(self, method):
        options = {"relaxation": "projection"} if method == "dsp" else {}
        schedule = {"budget_schedule": "cubic", "budget_start_updates": 2, "cooldown_updates": 6}
        model = build_gated(method, 4, **schedule, **options).train()
        sums = []
        for update in range(8):
            model.set_num_updates(update)
            sums.append(round(float(model.head_gates.gates().detach().sum()), 3))
            assert model.head_gates.budget_now.count == sums[-1]
        assert sums[:3] == [18, 18, 18]
        assert sums == sorted(sums, reverse=True)
        assert sums[6:] == [4, 4]
        assert model.eval().head_gates.gates().sum() == 4

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"budget_schedule": "steps"}, "`--budget-schedule` must be constant or cubic, but is steps"),
            ({"budget_start_updates": 3}, "must come with `--budget-schedule cubic`"),
            (
                {"budget_schedule": "cubic", "budget_start_updates": 9, "cooldown_updates": 9},
                "must be at least 0 and below",
            ),
            ({"budget_schedule": "cubic", "budget_start_updates": -1}, "must be at least 0 and below"),
        ],
    )
    def test_that_does_not_fit_the_training_is_refused(self, options, words, capsys):
        with pytest.raises(SystemExit):
            build_gated("dsp", 4, **options)
        assert words in capsys.readouterr().err
