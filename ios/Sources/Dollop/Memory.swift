// Answers to the system's warnings about memory.
import CDollop
import Foundation

/// How much of its memory an engine gives back. A level says how large the cache of experts is, not by how much it shrinks: the
/// same level twice does nothing the second time.
public enum TrimLevel: UInt32, Sendable, Hashable, CaseIterable, Comparable {
    /// The whole budget may be used again.
    case normal = 0
    /// Half of the cache beyond the smallest that works.
    case moderate = 1
    /// An eighth of that.
    case critical = 2
    /// The smallest that works: every expert that a token chooses is read.
    case complete = 3

    public static func < (a: TrimLevel, b: TrimLevel) -> Bool { a.rawValue < b.rawValue }
}

/// What the system says of memory, and how an app moves between foreground and background.
public enum MemoryEvent: Sendable, Hashable, CaseIterable {
    /// Memory pressure is over.
    case pressureNormal
    /// Memory pressure, `DispatchSource.MemoryPressureEvent.warning`.
    case pressureWarning
    /// Memory pressure, `DispatchSource.MemoryPressureEvent.critical`, or `UIApplication.didReceiveMemoryWarningNotification`.
    case pressureCritical
    /// The app can no longer be seen, and is among the first that the system ends for their memory.
    case enteredBackground
    /// The app is about to be seen again.
    case entersForeground
}

/// The level that follows from what the system said so far: the higher one of pressure and background.
public struct MemoryPolicy: Sendable, Hashable {
    private var pressure = TrimLevel.normal
    private var background = false

    public init() {}

    /// The level in force.
    public var level: TrimLevel { max(pressure, background ? .complete : .normal) }

    /// Takes note of an event; the level in force after it.
    public mutating func note(_ event: MemoryEvent) -> TrimLevel {
        switch event {
        case .pressureNormal: pressure = .normal
        case .pressureWarning: pressure = .moderate
        case .pressureCritical: pressure = .critical
        case .enteredBackground: background = true
        // A warning of UIKit has no end. What still holds is said again.
        case .entersForeground: (background, pressure) = (false, .normal)
        }
        return level
    }
}

/// Trims an engine as the system asks for it, for as long as this lives.
///
/// On Apple's systems it hears of memory pressure, and where there is UIKit, of memory warnings and of the way to the background
/// and back. Elsewhere, and in tests, ``note(_:)`` tells it.
public final class MemoryKeeper: Sendable {
    private let policy = Protected(MemoryPolicy())
    private let events: AsyncStream<TrimLevel>.Continuation
    private let endListening = Protected<[() -> Void]>([])

    /// Trims until this is released, or the engine is, which this does not keep.
    ///
    /// - Parameters:
    ///   - engine: what to trim.
    ///   - onTrim: hears what a trim gave back, or why it failed.
    public init(_ engine: Engine, onTrim: (@Sendable (TrimLevel, Result<UInt64, any Error>) -> Void)? = nil) {
        // Levels may come faster than they are reached: only the last one counts.
        let (levels, events) = AsyncStream.makeStream(of: TrimLevel.self, bufferingPolicy: .bufferingNewest(1))
        self.events = events
        Task { [weak engine] in
            for await level in levels {
                guard let engine else { return }
                do {
                    onTrim?(level, .success(try await engine.trim(level)))
                } catch {
                    onTrim?(level, .failure(error))
                }
            }
        }
        for (event, listen) in systemMemoryEvents {
            let end = listen { [weak self] in self?.note(event) }
            endListening { $0.append(end) }
        }
    }

    /// Tells of an event that this does not hear of by itself.
    public func note(_ event: MemoryEvent) {
        events.yield(policy { $0.note(event) })
    }

    deinit {
        events.finish()
        endListening { $0.forEach { $0() } }
    }
}
