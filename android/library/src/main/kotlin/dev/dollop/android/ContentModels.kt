// Models that another app or the system holds: opened by what a document picker or a content provider hands out.
package dev.dollop.android

import android.content.Context
import android.content.res.AssetFileDescriptor
import android.net.Uri
import dev.dollop.Descriptor
import dev.dollop.Engine
import dev.dollop.EngineOptions
import dev.dollop.Plan
import java.io.FileNotFoundException
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/**
 * Opens the Dollop file at a content [uri] (or `file:`, `android.resource:`). Other models have to be converted from a path. The
 * file is read while the engine lives, and its descriptor is the engine's own. A document that is streamed from elsewhere is no
 * file and is `Status.INVALID`; a part of a file, such as an uncompressed asset, must begin at a multiple of 64 bytes.
 *
 * @throws FileNotFoundException where the provider has no such file
 * @throws SecurityException where this app may not read it
 */
public suspend fun Engine.Companion.open(
    context: Context,
    uri: Uri,
    options: EngineOptions = EngineOptions(),
    dispatcher: CoroutineDispatcher = Dispatchers.IO,
): Engine = withFile(context, uri, dispatcher) { open(it, options, dispatcher) }

/** What opening the same would do with the memory; loads nothing. */
public suspend fun Engine.Companion.plan(
    context: Context,
    uri: Uri,
    options: EngineOptions = EngineOptions(),
    dispatcher: CoroutineDispatcher = Dispatchers.IO,
): Plan = withFile(context, uri, dispatcher) { plan(it, options, dispatcher) }

/** Providers may take their time: off the main thread. */
private suspend fun <T> withFile(
    context: Context,
    uri: Uri,
    dispatcher: CoroutineDispatcher,
    use: suspend (Descriptor) -> T,
): T = withContext(dispatcher) {
    val file = context.contentResolver.openAssetFileDescriptor(uri, "r")
        ?: throw FileNotFoundException("$uri: its provider handed out nothing")
    file.use {
        val length = it.declaredLength.takeIf { n -> n != AssetFileDescriptor.UNKNOWN_LENGTH } ?: 0
        use(Descriptor(it.parcelFileDescriptor.fd, it.startOffset, length))
    }
}
