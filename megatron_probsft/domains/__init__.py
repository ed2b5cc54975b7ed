"""Domains, a file each: math, medical and figfont are the paper's.

A domain's file holds one `DOMAIN`: where its data come from, its generator, its prompts by model family, how
it is sampled and graded, and what it is trained with. `registry.domains` finds the files; adding a domain is
adding one.

    from megatron_probsft.domains.preparing.preparation import Preparation, prepare
    from megatron_probsft.domains.templates import prompt_family, template_for

    card = prepare(Preparation("figfont", "generated", "runs/data/figfont", train=2000, test=500))

writes train.parquet, validation.parquet, test.parquet (where there are test rows), card.json and card.md, and
returns the card; a second call with the same settings finds it there. Train on it with
`--prompt-key extra_info.question --response-key extra_info.answer --template` `template_for(domain, family)`.
`reward_model.ground_truth` is what an evaluation compares with.
"""
