"""Data of the paper's three domains, math, medical and figfont: fetched, converted or generated.

    from megatron_probsft.domains.preparing.preparation import prepare
    from megatron_probsft.domains.templates import family_of, template_for

    card = prepare("figfont", "generated", "runs/data/figfont", train=2000, test=500)

writes train.parquet, validation.parquet, test.parquet (where there are test rows), card.json and card.md, and
returns the card; a second call with the same settings finds it there. Train on it with
`--prompt-key extra_info.question --response-key extra_info.answer --template` `template_for(domain, family)`.
`reward_model.ground_truth` is what an evaluation compares with.

A domain is a file with one `DOMAIN`: `mathematics`, `medical`, `figfont`.
"""
