//! What kernels a .cu file has, and what their parameters are called.

/// A kernel's name, its parameters' names, and what stands in its `__launch_bounds__`.
#[derive(Debug, PartialEq)]
pub struct Signature {
    pub name: String,
    pub parameters: Vec<String>,
    pub bounds: Option<String>,
}

/// All `__global__ void` functions of a source text, in its order.
pub fn kernels(text: &str) -> Vec<Signature> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    code.split("__global__").skip(1).filter_map(signature).collect()
}

/// Reads `void __launch_bounds__(…) name(type a, type b)`.
fn signature(after_global: &str) -> Option<Signature> {
    let mut rest = after_global.trim_start().strip_prefix("void")?.trim_start();
    let mut bounds = None;
    if let Some(list) = rest.strip_prefix("__launch_bounds__") {
        let (inside, after) = parenthesised(list.trim_start())?;
        (bounds, rest) = (Some(inside.to_owned()), after.trim_start());
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    let (name, rest) = rest.split_at(end);
    let (list, _) = parenthesised(rest.trim_start())?;
    let parameters = list.split(',').map(str::trim).filter(|parameter| !parameter.is_empty()).map(|parameter| {
        let last = parameter.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next();
        last.unwrap_or(parameter).to_owned()
    });
    Some(Signature { name: name.to_owned(), parameters: parameters.collect(), bounds })
}

/// What the parentheses at the start of `text` enclose, and what follows them.
fn parenthesised(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text.starts_with('(').then(|| (&text[1..at], &text[at + 1..]));
        }
    }
    None
}

#[test]
fn reads_signatures() {
    let text = "// __global__ void not_this(int a)\nextern \"C\" __global__ void __launch_bounds__(f(2) * 4, 2)\n    \
                two(const bf16* __restrict__ x, // input\n Rows rows) {}\n__global__ void none() {}";
    let signature = |name: &str, parameters: &[&str], bounds: Option<&str>| Signature {
        name: name.into(),
        parameters: parameters.iter().map(|&name| name.into()).collect(),
        bounds: bounds.map(str::to_owned),
    };
    let two = signature("two", &["x", "rows"], Some("f(2) * 4, 2"));
    assert_eq!(kernels(text), [two, signature("none", &[], None)]);
}
