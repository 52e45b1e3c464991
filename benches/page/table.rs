//! Tables in Markdown.

use flannel_benches::Spread;
use flannel_benches::figures::Figure;

/// Returns the distinct values of a column, in order of appearance.
pub(crate) fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// Returns the quantities, each with its series, in order of appearance.
pub(crate) fn columns<'a>(figures: &[&'a Figure]) -> Vec<(&'a str, &'a str)> {
    let mut columns = Vec::new();
    for figure in figures {
        let column = (figure.what.as_str(), figure.series.as_str());
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    columns
}

/// Returns a row per case and a column per series and quantity.
pub(crate) fn table(figures: &[&Figure], case: &str) -> String {
    let columns = columns(figures);
    let has_series = distinct(figures.iter().map(|figure| figure.series.as_str())).len() > 1;
    let heading = |(what, series): &(&str, &str)| match has_series {
        true => format!("{what}: {series}"),
        false => (*what).to_owned(),
    };
    let headings: Vec<String> = columns.iter().map(heading).collect();
    let mut text = format!("| {case} | {} |\n|---|{}\n", headings.join(" | "), "---:|".repeat(columns.len()));
    for at in distinct(figures.iter().map(|figure| figure.at.as_str())) {
        let cell = |(what, series): &(&str, &str)| {
            let is_it =
                |figure: &&&Figure| figure.at == at && figure.what == *what && figure.series == *series;
            figures.iter().find(is_it).map_or_else(String::new, |figure| number(figure.spread))
        };
        let cells: Vec<String> = columns.iter().map(cell).collect();
        text.push_str(&format!("| {} | {} |\n", grouped(at), cells.join(" | ")));
    }
    text
}

/// Formats the median, with the smallest and the largest if there were several rounds.
fn number(Spread { median, least, most }: Spread) -> String {
    let digits = |value: f64| match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    let show = |value: f64| format!("{value:.*}", digits(median));
    if show(least) == show(most) {
        show(median)
    } else {
        format!("{} ({}–{})", show(median), show(least), show(most))
    }
}

/// Formats a number with a comma between thousands, and other text unchanged.
fn grouped(text: &str) -> String {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.to_owned();
    }
    let start = text.len() % 3;
    let (head, rest) = text.split_at(start);
    let groups = rest.as_bytes().chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    Some(head.to_owned())
        .filter(|head| !head.is_empty())
        .into_iter()
        .chain(groups)
        .collect::<Vec<_>>()
        .join(",")
}
