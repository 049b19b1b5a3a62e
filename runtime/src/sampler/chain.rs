//! The links of the sampling chain: their names, which are llama.cpp's, and their order.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// One step between the logits and the choice of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// Repeat, frequency and presence penalties.
    Penalties,
    /// Penalty on tokens that continue a repetition.
    Dry,
    /// Keeps logits within some standard deviations of the highest.
    TopNSigma,
    /// Keeps a fixed number of tokens.
    TopK,
    /// Keeps tokens whose surprise is close to the expected one.
    #[serde(rename = "typ_p")]
    Typical,
    /// Keeps the likeliest tokens up to a total probability.
    TopP,
    /// Keeps tokens with a minimum probability relative to the likeliest.
    MinP,
    /// Drops the most probable tokens.
    Xtc,
    /// Flattens or sharpens the distribution.
    Temperature,
}

impl Link {
    /// All links in their default order, which is llama.cpp's.
    #[doc(hidden)]
    pub const ALL: [Link; 9] = [
        Link::Penalties,
        Link::Dry,
        Link::TopNSigma,
        Link::TopK,
        Link::Typical,
        Link::TopP,
        Link::MinP,
        Link::Xtc,
        Link::Temperature,
    ];

    /// The link's name in a chain.
    #[doc(hidden)]
    pub fn name(self) -> &'static str {
        match self {
            Link::Penalties => "penalties",
            Link::Dry => "dry",
            Link::TopNSigma => "top_n_sigma",
            Link::TopK => "top_k",
            Link::Typical => "typ_p",
            Link::TopP => "top_p",
            Link::MinP => "min_p",
            Link::Xtc => "xtc",
            Link::Temperature => "temperature",
        }
    }

    /// Finds a link by any spelling that llama.cpp accepts: `top_k`, `top-k`, `topk`.
    fn named(name: &str) -> Option<Link> {
        let plain = |name: &str| name.to_ascii_lowercase().replace(['_', '-'], "");
        let name = plain(name);
        match name.as_str() {
            "nucleus" => Some(Link::TopP),
            "temp" => Some(Link::Temperature),
            "typ" => Some(Link::Typical),
            _ => Link::ALL.into_iter().find(|link| plain(link.name()) == name),
        }
    }

    /// Parses a chain of names with semicolons (or commas) between them. An empty text is a chain without
    /// links.
    ///
    /// # Errors
    /// `Invalid`, naming the link that is unknown or appears twice.
    #[doc(hidden)]
    pub fn chain(text: &str) -> Result<Vec<Link>> {
        let names = text.split([';', ',']).map(str::trim).filter(|_| !text.trim().is_empty());
        let link = |name: &str| {
            Link::named(name).ok_or_else(|| {
                let all = Link::ALL.map(Link::name).join(", ");
                Error::Invalid(format!("there is no sampler `{name}`; choose from {all}"))
            })
        };
        let chain = names.map(link).collect::<Result<Vec<_>>>()?;
        Link::check(&chain).map(|()| chain)
    }

    /// Checks that no link appears twice.
    pub(super) fn check(chain: &[Link]) -> Result<()> {
        let twice = chain.iter().enumerate().find(|(i, link)| chain[..*i].contains(link));
        twice.map_or(Ok(()), |(_, link)| {
            Err(Error::Invalid(format!("the sampler {} appears twice", link.name())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_read_in_every_spelling() {
        let all = Link::ALL.map(Link::name).join(";");
        assert_eq!(all, "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature");
        assert_eq!(Link::chain(&all).unwrap(), Link::ALL);
        let few = [Link::TopNSigma, Link::TopP, Link::Typical, Link::Temperature];
        assert_eq!(Link::chain("Top-N-Sigma, nucleus;typ;temp").unwrap(), few);
        assert_eq!(Link::chain(" ").unwrap(), []);
        for (chain, word) in [("top_k;infill", "`infill`"), ("top_k;", "``"), ("top_k;dry;topk", "twice")] {
            assert!(Link::chain(chain).unwrap_err().to_string().contains(word), "{chain}");
        }
        for link in Link::ALL {
            assert_eq!(serde_json::to_value(link).unwrap(), link.name());
        }
    }
}
