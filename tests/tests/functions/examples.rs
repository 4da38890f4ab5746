//! Each example answers its event as it says.

use std::fs;

use serde_json::Value;

use crate::shared::{example, with};

fn answers_as_expected(name: &'static str) {
    let shared = with(name);
    let json = |file: &str| -> Value {
        let text = fs::read_to_string(example(name).join(file)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let event = json("event.json");
    // Twice: in a fresh machine, and after its reset.
    for _ in 0..2 {
        assert_eq!(shared.agent.call(name, &event), json("expected.json"));
    }
}

macro_rules! examples {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                answers_as_expected($name);
            }
        )*
    };
}

examples! {
    the_thumbnailer_with_pillow_from_a_layer_answers_as_expected: "thumbnailer",
    pagerank_in_plain_python_answers_as_expected: "pagerank",
    json_gzip_and_aes_in_python_answer_as_expected: "compute",
    the_nodejs_example_from_a_zip_answers_as_expected: "node-report",
    the_rust_bootstrap_answers_as_expected: "rust-words",
}
