"""Instructions of IFEval: what a row says of each, an answer that follows it, and one that does not."""

SIX = "One. Two! Three? He met Mr. Smith in the U.S. today. It cost 3.5 dollars... J. R. came."
CASES = {
    "keywords:existence": ({"keywords": ["Cat", "dog"]}, "A cat and dogs.", "A cat."),
    "keywords:frequency": ({"relation": "at least", "keyword": "war", "frequency": 2}, "War and war.", "Warm."),
    "keywords:forbidden_words": ({"forbidden_words": ["rock"]}, "A rocket.", "The ROCK!"),
    "keywords:letter_frequency": ({"let_relation": "less than", "letter": "T", "let_frequency": 2}, "a tea", "that"),
    "length_constraints:number_words": ({"relation": "at least", "num_words": 3}, "one two-three", "one two"),
    "length_constraints:number_sentences": ({"relation": "less than", "num_sentences": 7}, SIX, SIX + " Seven."),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        'First.\n\n"then, it',
        "Then.\n\nFirst",
    ),
    "detectable_content:postscript": ({"postscript_marker": "P.P.S"}, "Bye.\np. p.s. Yes", "Bye.\nP.S. Yes"),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] of [address]", "[name of address]"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "Two:\n* a\n  - b", "* a\n* b\n* c"),
    "detectable_format:constrained_response": ({}, "My answer is no.", "No."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and **b c**", "*a* and ** **"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na\nSection 2\nb",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    "detectable_format:title": ({}, "<<joy>>\nA poem", "<< >>\nA poem"),
    "combination:two_responses": ({}, "a\n******\nb", "a\n******\na"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Write a poem."}, "write a poem.\nSo", "So: Write a poem."),
    "startend:end_checker": ({"end_phrase": "Any other questions?"}, 'So. "Any other questions?"', "Any questions?"),
    "startend:quotation": ({}, '"So."', 'He said "so."'),
    "change_case:capital_word_frequency": (
        {"capital_relation": "less than", "capital_frequency": 2},
        "The NASA-USA rocket",
        "NASA and the USA",
    ),
    "change_case:english_capital": ({}, "ALL OF 3 IT.", "All."),
    "change_case:english_lowercase": ({}, "all of 3 it.", "All."),
    "punctuation:no_comma": ({}, "a b", "a, b"),
}
