//! Syllables of an English word, by the rule that `syllables.py` documents.

/// Runs of vowels, one less for a silent ending, at least 1.
pub fn syllables(word: &str) -> u64 {
    let letters: Vec<char> = word.chars().filter(|c| *c != '\'').collect();
    let mut runs = 0;
    let mut in_run = false;
    for letter in &letters {
        let vowel = is_vowel(*letter);
        runs += u64::from(vowel && !in_run);
        in_run = vowel;
    }
    (runs - u64::from(runs > 0 && ends_silent(&letters))).max(1)
}

fn is_vowel(letter: char) -> bool {
    matches!(letter, 'a' | 'e' | 'i' | 'o' | 'u' | 'y')
}

fn ends_silent(letters: &[char]) -> bool {
    let (stem, loud): (_, &[char]) = match letters {
        [stem @ .., 'e'] => (stem, &[]),
        [stem @ .., 'e', 's'] => (stem, &['c', 'g', 'h', 's', 'x', 'z']),
        [stem @ .., 'e', 'd'] => (stem, &['d', 't']),
        _ => return false,
    };
    match stem {
        [.., before, 'l'] if !is_vowel(*before) => false,
        [.., last] => !is_vowel(*last) && !loud.contains(last),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_the_syllables_that_the_rule_gives() {
        let expected = [
            (
                1,
                "the he makes walked free strength shh boxed don't e ed le",
            ),
            (2, "table tables handled places boxes added value"),
            (3, "company's readable syllable"),
            (5, "readability's"),
        ];
        for (count, words) in expected {
            for word in words.split(' ') {
                assert_eq!(syllables(word), count, "{word}");
            }
        }
    }
}
